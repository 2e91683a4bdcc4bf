// Plotly figures of the notebooks: drawn when they come into view, by the plotly.min.js beside this file, in the page's colours.
(() => {
  const script = new URL("plotly.min.js", document.currentScript.src).href;
  let loading;
  const plotly = () => (loading ??= new Promise((done, fail) => {
    const tag = Object.assign(document.createElement("script"), { src: script, onload: () => done(window.Plotly), onerror: fail });
    document.head.append(tag);
  }));

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--pst-color-text-base").trim(), line = style.getPropertyValue("--pst-color-border").trim();
    return { text, line, surface: style.getPropertyValue("--pst-color-surface").trim() };
  };

  const themed = (layout) => {
    const { text, line, surface } = colours();
    const axes = {};
    for (const key of new Set([...Object.keys(layout), "xaxis", "yaxis"]))
      if (/^[xy]axis\d*$/.test(key)) axes[key] = { ...layout[key], gridcolor: line, linecolor: line, zerolinecolor: line };
    return {
      ...layout, ...axes, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { ...layout.font, color: text },
      hoverlabel: { ...layout.hoverlabel, bgcolor: surface, bordercolor: line, font: { color: text } }, autosize: true, width: undefined,
    };
  };

  const draw = async (box) => {
    const figure = JSON.parse(box.querySelector("script").textContent);
    const Plotly = await plotly();
    box.figure = figure;
    await Plotly.newPlot(box, figure.data, themed(figure.layout ?? {}), { responsive: true, displaylogo: false, ...figure.config });
    box.dataset.drawn = "yes";
  };

  document.addEventListener("DOMContentLoaded", () => {
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) { seen.unobserve(target); draw(target); }
    }, { rootMargin: "400px" });
    document.querySelectorAll(".plotly-figure").forEach((box) => seen.observe(box));
    new MutationObserver(() => {
      document.querySelectorAll(".plotly-figure[data-drawn]").forEach((box) => window.Plotly.react(box, box.figure.data, themed(box.figure.layout ?? {})));
    }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  });
})();

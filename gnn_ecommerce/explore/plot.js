// Draws a figure again whenever its JSON or its width changes.
const library = globalThis.gxPlotly ??= Promise.withResolvers();

function render({model, el}) {
  el.classList.add('gx-plot');
  const box = el.appendChild(document.createElement('div'));
  let count = 0, seen = 0;

  async function draw() {
    const room = JSON.parse(model.get('figure')).layout;
    box.style.minHeight = room && room.height ? room.height + 'px' : ''; // nothing moves when plotly.js comes
    const Plotly = await library.promise, figure = JSON.parse(model.get('figure')), label = model.get('label');
    if (!figure.layout || !el.isConnected) return;
    el.setAttribute('role', 'figure');
    el.setAttribute('aria-label', label + ': ' + ((figure.layout.title || {}).text || ''));
    const layout = {...figure.layout, width: el.clientWidth || undefined};
    const picture = {format: 'png', scale: 2, filename: label};
    await Plotly.react(box, figure.data, layout, {displaylogo: false, toImageButtonOptions: picture});
    box.removeAllListeners('plotly_click');
    box.on('plotly_click', e => {
      model.set('clicked', {data: e.points[0].customdata ?? null, count: ++count});
      model.save_changes();
    });
    el.dataset.drawn = +(el.dataset.drawn || 0) + 1;
  }

  async function save({image: format, name: filename}) {
    if (!format) return;
    const size = {width: el.clientWidth, height: box.clientHeight, scale: format === 'png' ? 2 : 1};
    (await library.promise).downloadImage(box, {format, filename, ...size});
  }

  const resized = new ResizeObserver(() => {
    if (!el.clientWidth || Math.abs(el.clientWidth - seen) <= 1) return;
    seen = el.clientWidth;
    draw();
  });
  resized.observe(el);
  model.on('change:figure', draw);
  model.on('msg:custom', save);
  return () => {
    resized.disconnect();
    model.off('change:figure', draw);
    model.off('msg:custom', save);
    library.promise.then(Plotly => Plotly.purge(box));
  };
}

export default { render };

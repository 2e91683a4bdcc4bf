// Asks Python for plotly.js and hands it to all plots of the page; shows nothing.
const library = globalThis.gxPlotly ??= Promise.withResolvers();

function render({model}) {
  if (library.here) return;
  const receive = async (_, buffers) => {
    model.off('msg:custom', receive);
    const url = URL.createObjectURL(new Blob(buffers, {type: 'text/javascript'}));
    try { library.resolve((await import(url)).default); library.here = true; } finally { URL.revokeObjectURL(url); }
  };
  model.on('msg:custom', receive);
  model.send({event: 'want'});
  return () => model.off('msg:custom', receive);
}

export default { render };

// Hands texts to the browser as files.
function render({model}) {
  const save = ({text, mime, name}) => {
    const href = URL.createObjectURL(new Blob([text], {type: mime}));
    const link = Object.assign(document.createElement('a'), {href, download: name});
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  model.on('msg:custom', save);
  return () => model.off('msg:custom', save);
}

export default { render };

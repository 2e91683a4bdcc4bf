// A table whose rows can be chosen, with the mouse or the keyboard. A row may have a switch.
function make(tag, more, ...inside) {
  const element = Object.assign(document.createElement(tag), more);
  element.append(...inside);
  return element;
}

const isNumber = head => head.startsWith('#');

function render({model, el}) {
  el.classList.add('gx', 'gx-scroll');
  el.tabIndex = -1;

  function toggle(r, name) {
    const label = model.get('toggle'), button = make('button', {type: 'button', className: 'gx-toggle'}, label);
    button.setAttribute('aria-pressed', !!r.on);
    button.setAttribute('aria-label', label + ': ' + name);
    button.addEventListener('click', e => { e.stopPropagation(); model.send({event: 'toggle', key: r.key}); });
    return make('td', {}, button);
  }

  function row(r, heads, main) {
    const chosen = r.key === model.get('selected') && r.key !== null;
    const line = make('tr', {}, ...r.cells.map((text, k) => {
      if (k !== main) return make('td', {className: isNumber(heads[k]) ? 'num' : ''}, text);
      const pick = make('button', {type: 'button', className: 'gx-pick'}, text);
      pick.setAttribute('aria-current', chosen);
      return make('td', {}, pick, ...(r.detail ? [make('div', {className: 'gx-dim'}, r.detail)] : []));
    }));
    line.dataset.key = r.key;
    line.setAttribute('aria-selected', chosen);
    if (r.key === null) return line; // a line such as 'and 600 earlier products' is there to be read
    line.addEventListener('click', () => model.send({event: 'choose', key: r.key}));
    if (model.get('toggle')) line.append(toggle(r, r.cells[main]));
    line.classList.toggle('gone', !!(model.get('toggle') && r.on));
    return line;
  }

  function table() {
    const heads = model.get('heads'), main = Math.max(0, heads.findIndex(h => !isNumber(h)));
    const cells = heads.map(h => make('th', {scope: 'col', className: isNumber(h) ? 'num' : ''}, h.replace(/^#(?=.)/, '')));
    const head = make('tr', {}, ...cells, ...(model.get('toggle') ? [make('th', {}, '')] : []));
    const body = make('tbody', {}, ...model.get('rows').map(r => row(r, heads, main)));
    const element = make('table', {className: 'gx-rows'}, make('thead', {}, head), body);
    element.setAttribute('aria-label', model.get('label'));
    return element;
  }

  function draw() {
    const active = el.contains(document.activeElement) ? document.activeElement : null, top = el.scrollTop;
    const key = active?.closest('tr')?.dataset.key, cls = active?.className || 'gx-pick';
    const empty = () => make('div', {className: 'gx-dim', style: 'padding: 8px'}, model.get('empty'));
    el.replaceChildren(model.get('rows').length ? table() : empty());
    el.scrollTop = top;
    el.dataset.drawn = +(el.dataset.drawn || 0) + 1;
    if (active) [...el.querySelectorAll('tr')].find(r => r.dataset.key === key)?.querySelector('.' + cls)?.focus();
  }

  el.addEventListener('keydown', e => {
    const step = {ArrowDown: 1, ArrowUp: -1}[e.key];
    const all = [...el.querySelectorAll('.' + (e.target.className || 'none'))], k = all.indexOf(e.target);
    if (!step || k < 0) return;
    e.preventDefault();
    e.stopPropagation();
    all[Math.min(all.length - 1, Math.max(0, k + step))].focus();
  });
  for (const what of ['rows', 'selected']) model.on('change:' + what, draw);
  draw();
  return () => { for (const what of ['rows', 'selected']) model.off('change:' + what, draw); };
}

export default { render };

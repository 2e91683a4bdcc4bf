// The page without a kernel: a choice only says which of the figures in #data to draw.
const data = JSON.parse(document.getElementById('data').textContent);
const at = id => document.getElementById(id);
const now = {customer: 0, item: null, mode: data.modes[0], top: Math.min(1, data.tops.length - 1)};

function make(tag, more, ...inside) {
  const element = Object.assign(document.createElement(tag), more);
  element.append(...inside);
  return element;
}

function draw(id, figure) {
  const {data, layout} = structuredClone(figure), picture = {format: 'png', scale: 2, filename: id};
  Plotly.react(at(id), data, layout, {responsive: true, displaylogo: false, toImageButtonOptions: picture});
}

function line(r) {
  const row = make('tr', {},
    make('td', {className: 'num'}, String(r.rank)),
    make('td', {}, make('button', {type: 'button'}, r.name), make('div', {className: 'gx-dim'}, r.reason)),
    make('td', {}, r.brand),
    make('td', {className: 'num'}, r.price));
  row.dataset.item = r.item;
  row.addEventListener('click', () => product(r.item));
  return row;
}

function customer(k) {
  now.customer = k;
  const c = data.customers[k];
  at('note').textContent = c.note;
  at('about').textContent = c.about;
  draw('timeline', c.timeline);
  at('list').replaceChildren(...c.list.map(line));
  at('again').replaceChildren(...c.again.map(line));
  at('buy-again').hidden = !c.again.length;
  const first = c.list[0] || c.again[0];
  if (first) product(first.item);
}

function product(item) {
  now.item = item;
  for (const row of [...at('list').children, ...at('again').children]) {
    const on = row.dataset.item == item;
    row.setAttribute('aria-selected', on);
    row.querySelector('button').setAttribute('aria-current', on);
  }
  const p = data.customers[now.customer].products[item];
  draw('shares', p.shares);
  draw('effect', p.effect);
  at('similar').replaceChildren(make('ul', {}, ...p.similar.map(text => make('li', {}, text))));
  paths();
}

function paths() {
  at('count').textContent = data.tops[now.top];
  at('top').setAttribute('aria-valuetext', data.tops[now.top] + ' paths');
  draw('paths', data.customers[now.customer].products[now.item].paths[now.mode][now.top]);
}

function choice(mode, k) {
  const onchange = () => { now.mode = mode; paths(); };
  const radio = make('input', {type: 'radio', name: 'mode', value: mode, checked: k === 0, onchange});
  return make('label', {}, radio, data.mode_names[mode]);
}

at('customer').append(...data.customers.map((c, k) => make('option', {value: k}, c.id)));
at('customer').addEventListener('change', e => customer(+e.target.value));
at('mode').append(...data.modes.map(choice));
const oninput = e => { now.top = +e.target.value; paths(); };
Object.assign(at('top'), {max: data.tops.length - 1, value: now.top, oninput});
at('svg').addEventListener('click', () => {
  const {clientWidth: width, clientHeight: height} = at('paths');
  Plotly.downloadImage(at('paths'), {format: 'svg', filename: 'paths', width, height});
});
customer(0);

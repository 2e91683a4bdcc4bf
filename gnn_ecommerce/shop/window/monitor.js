// The monitor: reads the metrics that Prometheus reads, of all servers, every few seconds, and draws them.
import {ask, byId, count, failed, make, number, percent, svg} from './dom.js'

const EVERY = 5000 // milliseconds
const past = [] // {time, requests, p95} of this page's looks, for the lines
let key = sessionStorage.getItem('monitor-key') ?? '',
  timer = 0

// What Prometheus reads

const unescaped = text => text.replace(/\\(.)/g, (_, letter) => (letter === 'n' ? '\n' : letter))

/** Samples by name: [{labels, value}]. */
function parse(text) {
  const samples = {}
  for (const line of (text ?? '').split('\n')) {
    const parts = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line)
    if (!parts) continue
    const labels = {}
    for (const [, name, value] of (parts[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[name] = unescaped(value)
    ;(samples[parts[1]] ??= []).push({labels, value: Number(parts[3])})
  }
  return samples
}

const rowsOf = (samples, name) => samples[name] ?? []
const total = rows => rows.reduce((sum, row) => sum + row.value, 0)
const valueOf = (samples, name) => rowsOf(samples, name)[0]?.value

/** Sums by a label, largest first: [[value of the label, sum]]. */
function sums(rows, label) {
  const by = new Map()
  for (const row of rows) by.set(row.labels[label], (by.get(row.labels[label]) ?? 0) + row.value)
  return [...by].sort((a, b) => b[1] - a[1])
}

/** A quantile of a histogram's buckets, in seconds, as Prometheus computes it: linear within a bucket. */
function quantile(buckets, q) {
  const by = new Map()
  for (const {labels, value} of buckets) {
    const edge = labels.le === '+Inf' ? Infinity : Number(labels.le)
    by.set(edge, (by.get(edge) ?? 0) + value)
  }
  const edges = [...by.keys()].sort((a, b) => a - b),
    wanted = q * (by.get(Infinity) ?? 0)
  if (!wanted) return null
  const at = edges.findIndex(edge => by.get(edge) >= wanted),
    low = at ? edges[at - 1] : 0,
    below = at ? by.get(low) : 0
  if (edges[at] === Infinity) return low
  return low + ((edges[at] - low) * (wanted - below)) / (by.get(edges[at]) - below)
}

// Numbers and pictures

const milliseconds = seconds => (seconds === null ? '' : number(1000 * seconds, seconds < 0.01 ? 1 : 0))

function readable(value, unit) {
  if (unit !== 's') return number(value)
  const [word, size] = [
    ['days', 86400, 172800],
    ['hours', 3600, 7200],
    ['min', 60, 120]
  ].find(([, , least]) => value >= least) ?? ['s', 1]
  return `${number(value / size, value / size >= 100 ? 0 : 1)} ${word}`
}

const cell = (text, isNumber = true, more = '') => make('td', {class: `${isNumber ? 'n ' : ''}${more}`}, text)
const drawn = picture => make('td', {class: 'draw'}, picture)

function table(heads, rows) {
  const head = heads.map(([text, name]) => make('th', {scope: 'col', class: name}, text))
  return make(
    'table',
    {},
    make('thead', {}, make('tr', {}, head)),
    make(
      'tbody',
      {},
      rows.map(row => make('tr', {}, row))
    )
  )
}

const rowHead = (text, picture) => make('th', {scope: 'row'}, picture, text)
const drawing = (label, ...children) =>
  svg(
    'svg',
    {viewBox: '0 0 200 16', preserveAspectRatio: 'none', height: 16, role: 'img', 'aria-label': label},
    ...children
  )

/** A bar from 0, with marks such as a limit. */
const bar = (value, most, label, marks = [], name = '') =>
  drawing(
    label,
    svg('rect', {x: 0, y: 4, width: 200, height: 8, class: 'track'}),
    svg('rect', {x: 0, y: 4, width: 200 * Math.min(1, value / most), height: 8, class: `fill ${name}`}),
    marks.map(([at, mark]) =>
      svg('line', {x1: 200 * Math.min(1, at / most), x2: 200 * Math.min(1, at / most), y1: 0, y2: 16, class: mark})
    )
  )

const interval = (rate, low, high, most) =>
  drawing(
    `${percent(rate)}, from ${percent(low)} to ${percent(high)}`,
    svg('line', {x1: 0, x2: 200, y1: 8, y2: 8, class: 'axis'}),
    svg('line', {x1: (200 * low) / most, x2: (200 * high) / most, y1: 8, y2: 8, class: 'whisker'}),
    svg('rect', {x: (200 * rate) / most - 1.5, y: 1, width: 3, height: 14, class: 'dot'})
  )

function spark(values) {
  const most = Math.max(...values, 1e-9),
    step = 200 / Math.max(1, values.length - 1)
  const points = values.map((value, n) => `${n * step},${24 - (22 * value) / most}`).join(' ')
  return svg(
    'svg',
    {viewBox: '0 0 200 26', preserveAspectRatio: 'none', 'aria-hidden': 'true'},
    svg('polyline', {points, class: 'spark'})
  )
}

const figure = (name, value, about, picture) =>
  make(
    'div',
    {class: 'card figure'},
    make('span', {class: 'soft small'}, name),
    make('b', {class: String(value).length > 11 && 'long'}, value),
    make('span', {class: 'soft small'}, about),
    picture
  )

function show(id, title, about, ...content) {
  byId(id).replaceChildren(make('h2', {}, title), make('p', {class: 'about'}, about), ...content.flat())
}
const nothing = text => make('p', {class: 'soft'}, text)

// The sections

const ALERTS = {
  fallback: ['Lists without the model', percent],
  empty: ['Empty lists', percent],
  p95_ms: ['One list in 20 takes more than', v => `${number(v)} ms`],
  export_hours: ['Export lags', v => `${number(v)} hours`],
  spool: ['Records that wait for the database', v => number(v)]
}

function alertRow({name, value, limit}) {
  const [title, format] = ALERTS[name] ?? [
    `Drift: ${name.replace('psi_', '').replace('_', ' ')} (PSI)`,
    v => number(v, 2)
  ]
  const beyond = value > limit,
    verdict = beyond ? 'look here' : 'within'
  return [
    rowHead(title),
    cell(format(value)),
    cell(format(limit)),
    cell(verdict, false, beyond ? 'look' : 'well'),
    drawn(
      bar(
        value,
        Math.max(limit * 1.5, value),
        `${format(value)} of ${format(limit)}`,
        [[limit, 'limit']],
        beyond && 'bad'
      )
    )
  ]
}

function headline({monitor}) {
  const limits = new Map(rowsOf(monitor, 'gnn_ecommerce_monitor_alert_limit').map(row => [row.labels.alert, row.value]))
  const alerts = rowsOf(monitor, 'gnn_ecommerce_monitor_alert_value').map(row => ({
    name: row.labels.alert,
    value: row.value,
    limit: limits.get(row.labels.alert)
  }))
  const beyond = alerts.filter(alert => alert.value > alert.limit).length
  const title = !alerts.length
    ? 'No list in the last day, or no monitoring: nothing to judge.'
    : beyond
      ? `Look here: ${beyond} of ${alerts.length} numbers beyond their limits.`
      : 'Well: everything is within its limits.'
  show(
    'headline',
    title,
    'The last day, by the stores; the red line is the limit.',
    alerts.length
      ? table([['Watched'], ['Value', 'n'], ['Limit', 'n'], ['State'], ['Value and limit']], alerts.map(alertRow))
      : []
  )
}

function numbers({api, monitor, bundles}) {
  const requests = total(rowsOf(api, 'gnn_api_requests_total').filter(isList)),
    p95 = quantile(rowsOf(api, 'gnn_api_request_seconds_bucket').filter(isList), 0.95)
  past.push({time: performance.now() / 1000, requests, p95: p95 ?? 0})
  if (past.length > 120) past.shift()
  const rates = past
    .slice(1)
    .map((now, n) => Math.max(0, (now.requests - past[n].requests) / (now.time - past[n].time)))
  const lists = rowsOf(monitor, 'gnn_ecommerce_monitor_lists'),
    all = total(lists)
  const fallback = total(lists.filter(row => row.labels.source === 'fallback')),
    active = bundles[0]
  const waiting = valueOf(api, 'gnn_api_spool_records') ?? 0
  byId('numbers').replaceChildren(
    figure('Calls a second', number(rates.at(-1) ?? 0, 1), 'since this page was opened', spark(rates)),
    figure(
      '95 % of calls within',
      p95 === null ? 'no call yet' : `${milliseconds(p95)} ms`,
      'since the server started',
      spark(past.map(look => look.p95))
    ),
    figure('Lists, last day', number(all), `${percent(all ? fallback / all : 0)} without the model`),
    figure('Events, last day', number(total(rowsOf(monitor, 'gnn_ecommerce_monitor_events'))), eventText(monitor)),
    figure('Events waiting', number(waiting), waiting ? 'for the database' : 'all are stored'),
    figure(
      'Model',
      active ? age(active.created) : 'away',
      active ? `old: ${active.model_version}` : 'popular products instead'
    )
  )
}

const isList = row => row.labels.route?.startsWith('/v1/') && !row.labels.route.startsWith('/v1/admin')
const eventText = monitor =>
  sums(rowsOf(monitor, 'gnn_ecommerce_monitor_events'), 'event_type')
    .slice(0, 3)
    .map(([name, n]) => `${number(n)} ${name.replaceAll('_', ' ')}`)
    .join(', ') || 'none yet'
const age = created => readable((Date.now() - new Date(created)) / 1000, 's')

function routes({api}) {
  const requests = rowsOf(api, 'gnn_api_requests_total'),
    buckets = rowsOf(api, 'gnn_api_request_seconds_bucket')
  const byRoute = sums(
    requests.filter(row => row.labels.route.startsWith('/v1/')),
    'route'
  ).map(([route, n]) => {
    const own = requests.filter(row => row.labels.route === route),
      time = buckets.filter(row => row.labels.route === route)
    return {
      route,
      n,
      wrong: own.filter(row => row.labels.status.startsWith('4')),
      broken: own.filter(row => row.labels.status.startsWith('5')),
      times: [0.5, 0.95, 0.99].map(q => quantile(time, q))
    }
  })
  const most = Math.max(...byRoute.map(row => row.times[2] ?? 0), 0.001)
  show(
    'routes',
    'Requests',
    'Since the API server started; times in milliseconds, read from the histogram as Prometheus does.',
    table(
      [
        ['Route'],
        ['Requests', 'n'],
        ['4xx', 'n'],
        ['5xx', 'n'],
        ['p50', 'n hide'],
        ['p95', 'n'],
        ['p99', 'n hide'],
        ['p95, to the slowest p99', 'hide']
      ],
      byRoute.map(row => [
        rowHead(row.route),
        cell(number(row.n)),
        cell(number(total(row.wrong))),
        cell(number(total(row.broken)), true, total(row.broken) ? 'look' : ''),
        cell(milliseconds(row.times[0]), true, 'hide'),
        cell(milliseconds(row.times[1])),
        cell(milliseconds(row.times[2]), true, 'hide'),
        make('td', {class: 'draw hide'}, bar(row.times[1] ?? 0, most, `${milliseconds(row.times[1])} ms`))
      ])
    )
  )
}

const SOURCES = {
  model: 'model',
  fold_in: 'fold-in',
  buy_again: 'buy again',
  similar: 'similar',
  popular: 'popular',
  content: 'content',
  popular_in_category: 'popular in a category',
  random: 'by chance',
  fallback: 'fallback'
}

function sources({api, monitor}) {
  const day = rowsOf(monitor, 'gnn_ecommerce_monitor_lists'),
    rows = sums(day.length ? day : rowsOf(api, 'gnn_api_lists_total'), 'source')
  const all = rows.reduce((sum, [, n]) => sum + n, 0),
    about = day.length ? 'Lists of the last day.' : 'Lists since the server started.'
  if (!all) return show('sources', 'Where lists come from', about, nothing('No list yet.'))
  let at = 0
  const parts = rows.map(([, n], place) => {
    const part = svg('rect', {x: (200 * at) / all, y: 0, width: (200 * n) / all, height: 16, class: `c${place % 7}`})
    at += n
    return part
  })
  const mark = place =>
    svg(
      'svg',
      {viewBox: '0 0 12 12', class: 'key-mark', 'aria-hidden': 'true'},
      svg('rect', {width: 12, height: 12, class: `c${place % 7}`})
    )
  show(
    'sources',
    'Where lists come from',
    about,
    make('div', {class: 'stack'}, drawing('Shares by source, as in the table', parts)),
    table(
      [['Source'], ['Lists', 'n'], ['Share', 'n']],
      rows.map(([name, n], place) => [
        rowHead(SOURCES[name] ?? name, mark(place)),
        cell(number(n)),
        cell(percent(n / all))
      ])
    )
  )
}

function versions({bundles, monitor}) {
  const trained = rowsOf(monitor, 'gnn_ecommerce_monitor_backlog').find(
    row => row.labels.what === 'training: age of its data'
  )
  const about = trained
    ? `The data that it has learned from end ${readable(trained.value, 's')} ago.`
    : 'Share: of the customers; a second one is a canary.'
  if (!bundles.length)
    return show('versions', 'Models that answer', about, nothing('The model server does not answer.'))
  show(
    'versions',
    'Models that answer',
    about,
    table(
      [['Version'], ['Share', 'n'], ['Age', 'n'], ['Customers', 'n hide'], ['Products', 'n hide']],
      bundles.map(b => [
        make('th', {scope: 'row'}, b.model_version, make('span', {class: 'soft small block'}, `bundle ${b.bundle}`)),
        cell(percent(b.share, 0)),
        cell(age(b.created)),
        cell(number(b.n_users), true, 'hide'),
        cell(number(b.n_items), true, 'hide')
      ])
    )
  )
}

const VERSIONS = {none: 'without a model'}

/** Rates by version and by source, with their intervals on one scale. */
function rates(id, title, name, {monitor}) {
  const groups = [
    ['', 'model_version'],
    ['_by_source', 'source']
  ].map(([suffix, label]) => {
    const rows = new Map()
    for (const {labels, value} of rowsOf(monitor, `gnn_ecommerce_monitor_${name}_rate${suffix}`)) {
      rows.set(labels[label], {...rows.get(labels[label]), [labels.bound || 'rate']: value})
    }
    return [...rows]
  })
  const most = Math.max(...groups.flat().map(([, r]) => r.high), 0.01),
    about = 'Share of lists, within a day; the bar is the 95 % interval.'
  if (!groups.flat().length) return show(id, title, about, nothing('No list yet.'))
  show(
    id,
    title,
    about,
    groups.map((rows, n) =>
      table(
        [[n ? 'By source' : 'By version'], ['Rate', 'n'], [`0 to ${percent(most)}`]],
        rows.map(([name_, r]) => [
          rowHead((n ? SOURCES[name_] : VERSIONS[name_]) ?? name_),
          cell(percent(r.rate)),
          drawn(interval(r.rate, r.low, r.high, most))
        ])
      )
    )
  )
}

function drift({monitor}) {
  const chance = new Map(
    rowsOf(monitor, 'gnn_ecommerce_monitor_psi_chance').map(row => [row.labels.variable, row.value])
  )
  const rows = rowsOf(monitor, 'gnn_ecommerce_monitor_psi')
  const about =
    'PSI of live events against those of the training. Red: limit 0.25; dashed: what so few events reach by chance.'
  if (!rows.length)
    return show('drift', 'Drift', about, nothing('No event yet, or a bundle without the profile of its events.'))
  const verdict = (psi, by) =>
    psi < Math.max(0.1, by) ? ['ok', 'well'] : psi < 0.25 ? ['watch', 'watch'] : ['drift', 'look']
  show(
    'drift',
    'Drift',
    about,
    table(
      [['Variable'], ['PSI', 'n'], ['Chance', 'n'], ['State'], ['PSI, limit, chance']],
      rows.map(({labels, value}) => {
        const by = chance.get(labels.variable) ?? 0,
          [text, name] = verdict(value, by)
        return [
          rowHead(labels.variable.replaceAll('_', ' ')),
          cell(number(value, 2)),
          cell(number(by, 2)),
          cell(text, false, name),
          drawn(
            bar(
              value,
              Math.max(0.5, value, by) * 1.05,
              `PSI ${number(value, 2)}`,
              [
                [0.25, 'limit'],
                [by, 'chance']
              ],
              name === 'look' && 'bad'
            )
          )
        ]
      })
    )
  )
}

function coverage({monitor}) {
  const rows = rowsOf(monitor, 'gnn_ecommerce_monitor_products'),
    about = 'Different products in the lists of the last day.'
  const ratios = new Map(
    rowsOf(monitor, 'gnn_ecommerce_monitor_coverage_ratio').map(row => [row.labels.model_version, row.value])
  )
  if (!rows.length) return show('coverage', 'Coverage', about, nothing('No list yet.'))
  show(
    'coverage',
    'Coverage',
    about,
    table(
      [['Version'], ['Products', 'n'], ['Of the catalogue', 'n'], ['Share']],
      rows.map(({labels, value}) => {
        const share = ratios.get(labels.model_version)
        return [
          rowHead(VERSIONS[labels.model_version] ?? labels.model_version),
          cell(number(value)),
          cell(share === undefined ? '' : percent(share)),
          drawn(bar(share ?? 0, 1, percent(share ?? 0)))
        ]
      })
    )
  )
}

function waiting({monitor}) {
  const rows = rowsOf(monitor, 'gnn_ecommerce_monitor_backlog')
  show(
    'waiting',
    'What waits',
    'What has happened and has not arrived yet.',
    rows.length
      ? table(
          [['What'], ['How much', 'n']],
          rows.map(({labels, value}) => [rowHead(labels.what), cell(readable(value, labels.unit))])
        )
      : nothing('The monitoring does not answer.')
  )
}

function services({state, api, model, monitor}) {
  const looked = valueOf(monitor, 'gnn_ecommerce_monitor_up'),
    look = valueOf(monitor, 'gnn_ecommerce_monitor_look_seconds')
  const up = value => cell(value ? 'up' : 'down', false, value ? 'well' : 'look')
  show(
    'services',
    'Servers',
    'As the API server sees them at this moment.',
    table(
      [['Server'], ['State'], ['Now']],
      [
        [
          rowHead('API server'),
          up(true),
          cell(`${count(valueOf(api, 'gnn_api_requests_running') ?? 0, 'request')} running`, false)
        ],
        [
          rowHead('Model server'),
          up(state.model === 'up'),
          cell(`${number(valueOf(model, 'gnn_model_workers') ?? 0)} workers, circuit ${state.circuit}`, false)
        ],
        [rowHead('Database'), up(state.store === 'up'), cell(`${number(state.spool)} records wait on disk`, false)],
        [
          rowHead('Monitoring'),
          up(looked === 1),
          cell(
            look === undefined ? 'MONITOR_URL names none, or it is away' : `its last look took ${number(look, 2)} s`,
            false
          )
        ]
      ]
    )
  )
}

// Looking

function draw(body) {
  const seen = {...body, api: parse(body.api), model: parse(body.model), monitor: parse(body.monitor)}
  for (const section of [headline, numbers, routes, sources, versions, drift, coverage, waiting, services])
    section(seen)
  rates('clicks', 'Clicks', 'click', seen)
  rates('purchases', 'Purchases', 'purchase', seen)
}

function complain(text) {
  byId('problem').textContent = text
  byId('problem').hidden = !text
}

async function look() {
  clearTimeout(timer)
  if (!document.hidden) {
    try {
      const answer = await ask('GET', '/v1/admin/monitor', key)
      complain(answer.status === 200 ? '' : failed(answer))
      if (answer.status === 401 || answer.status === 403) return forget()
      if (answer.status === 200) accept(answer.body)
    } catch (error) {
      complain(`The API server does not answer: ${error.message}`)
    }
  }
  timer = setTimeout(look, EVERY)
}

function accept(body) {
  sessionStorage.setItem('monitor-key', key)
  byId('hint').hidden = byId('ask').hidden = true
  byId('report').hidden = false
  byId('when').textContent = `at ${new Date().toLocaleTimeString('en-GB')}, every ${EVERY / 1000} s`
  draw(body)
}

function forget() {
  sessionStorage.removeItem('monitor-key')
  byId('hint').hidden = byId('ask').hidden = false
}

byId('ask').addEventListener('submit', event => {
  event.preventDefault()
  key = byId('key').value.trim()
  look()
})
if (key) look()

// The shop window: a customer, shelves, a cart. Each click is an event; then every shelf is asked for again.
import {ask, byId, count, failed, make, newId, number, price, svg} from './dom.js'
import {picture} from './pictures.js'

const LENGTH = 12
const state = {
  key: '',
  customer: null, // {customer, known, products, bought, recent}
  session: [], // [{product_id, event_type}], newest last
  cart: new Map(), // product id -> product
  looked: [], // products, newest first
  bought: [], // the same
  product: null, // that is being looked at, with the list it stood in
  calls: 0,
  round: 0
}

// The API, and the drawer that shows each call

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`

function curlLine(method, path, body) {
  const how = body ? ` --json ${quoted(JSON.stringify(body))}` : method === 'GET' ? '' : ` -X ${method}`
  return `curl -s -H "Authorization: Bearer $KEY"${how} ${quoted(location.origin + path)}`
}

function showCall(method, path, body, answer) {
  state.calls += 1
  byId('asked').textContent = `${number(state.calls)}, the last in ${number(answer.ms, 1)} ms`
  const text = JSON.stringify(answer.body, null, 1) ?? ''
  const shown = text.length > 6000 ? `${text.slice(0, 6000)}\n... ${number(text.length - 6000)} characters more` : text
  const verdict = make('span', {class: answer.status < 400 ? 'ok' : 'no'}, `${answer.status}`)
  byId('calls').prepend(
    make(
      'details',
      {class: 'call'},
      make(
        'summary',
        {},
        verdict,
        make('span', {class: 'soft'}, `${number(answer.ms, 1)} ms`),
        make('code', {}, `${method} ${path}`)
      ),
      make('pre', {tabindex: 0}, curlLine(method, path, body)),
      make('pre', {tabindex: 0}, shown)
    )
  )
  while (byId('calls').children.length > 100) byId('calls').lastChild.remove()
}

/** Ask the API and show the call; throws an Error that says what went wrong. */
async function call(method, path, body) {
  const answer = await ask(method, path, state.key, body)
  showCall(method, path, body, answer)
  if (answer.status >= 400) throw new Error(failed(answer))
  return answer.body
}

function say(text) {
  byId('said').replaceChildren(make('p', {}, text))
  clearTimeout(say.timer)
  say.timer = setTimeout(() => byId('said').replaceChildren(), 4000)
}

function complain(error) {
  byId('problem').textContent = error ? `The API refused: ${error.message}` : ''
  byId('problem').hidden = !error
}

// Events

const DONE = {
  view: name => `You look at ${name}.`,
  cart: name => `${name} is in the cart.`,
  remove_from_cart: name => `${name} is out of the cart.`,
  purchase: name => `You bought ${name}.`
}
const nameOf = product => String(product.name ?? product.product_id)

function eventOf(type, product) {
  const optional = {brand: product.brand, price: product.price, recommendation_id: product.list}
  const given = Object.entries(optional).filter(([, value]) => value !== null && value !== undefined)
  return {
    event_id: newId('window'),
    event_type: type,
    product_id: product.product_id,
    customer_id: state.customer.customer,
    ...Object.fromEntries(given)
  }
}

const first = (product, others) => [product, ...others.filter(other => other.product_id !== product.product_id)]

function remember(type, product) {
  state.session = state.session.filter(entry => entry.product_id !== product.product_id)
  if (type !== 'remove_from_cart') state.session.push({product_id: product.product_id, event_type: type})
  if (type === 'cart') state.cart.set(product.product_id, product)
  else if (type !== 'view') state.cart.delete(product.product_id)
  if (type === 'view') state.looked = first(product, state.looked)
  if (type === 'purchase') state.bought = first(product, state.bought)
}

/** Send events of one type, then ask for every shelf again. */
async function act(type, products) {
  const place = placeOf(document.activeElement)
  try {
    await call('POST', '/v1/events', {events: products.map(product => eventOf(type, product))})
    for (const product of products) remember(type, product)
    say(products.length === 1 ? DONE[type](nameOf(products[0])) : `You bought ${count(products.length, 'product')}.`)
    complain(null)
  } catch (error) {
    complain(error)
  }
  showMe()
  showCart()
  await refresh()
  refocus(place)
}

async function look(product) {
  state.product = product
  const showing = showProduct()
  await act('view', [product])
  await showing
}

// Why a product is there

const VERBS = {view: 'looked at', cart: 'put into the cart', remove_from_cart: 'removed', purchase: 'bought'}
const OTHERS = {
  self: 'you as such: what customers like you do',
  rest: 'everything else you did',
  bias: 'the product as such',
  content: 'alike by category, brand and price',
  repeat: 'bought again and again'
}

function reasonText(reason) {
  if (reason.kind !== 'product') return OTHERS[reason.kind] ?? reason.kind
  return `you ${VERBS[reason.event_type] ?? reason.event_type} ${reason.name ?? reason.product_id}`
}

function bar(value, most, least) {
  const span = most - least || 1,
    zero = (-least / span) * 100,
    width = (Math.abs(value) / span) * 100
  const x = value < 0 ? zero - width : zero
  return svg(
    'svg',
    {viewBox: '0 0 100 13', preserveAspectRatio: 'none', 'aria-hidden': 'true'},
    svg('line', {x1: zero, x2: zero, y1: 0, y2: 13, class: 'axis'}),
    svg('rect', {x, y: 2, width: Math.max(width, 0.4), height: 9, class: value < 0 ? 'down' : 'up'})
  )
}

const shareRow = (reason, most, least, digits) =>
  make(
    'tr',
    {},
    make('th', {scope: 'row'}, reasonText(reason)),
    make('td', {class: 'bar'}, bar(reason.share, most, least)),
    make('td', {class: 'value'}, number(reason.share, digits))
  )

/** The shares of a score as bars, with their sum beside the score. */
function shares(product) {
  const reasons = product.reasons ?? []
  if (!reasons.length) {
    const score = typeof product.score === 'number' ? ` Its score is ${number(product.score, 3)}.` : ''
    return make(
      'p',
      {class: 'soft'},
      `${product.sentence ?? product.because ?? ''}${score} No part of it comes from you.`
    )
  }
  const values = reasons.map(reason => reason.share),
    sum = values.reduce((a, b) => a + b, 0)
  const most = Math.max(0, ...values),
    least = Math.min(0, ...values),
    digits = Math.abs(sum) < 0.095 ? 4 : 3
  const same = Math.abs(sum - product.score) <= 1e-3 * Math.max(1, Math.abs(product.score))
  const verdict = same ? 'the score' : `not the score, ${number(product.score, digits)}`
  return make(
    'table',
    {class: 'shares'},
    make('caption', {class: 'skip'}, 'Shares of the score'),
    make(
      'tbody',
      {},
      reasons.map(reason => shareRow(reason, most, least, digits))
    ),
    make(
      'tfoot',
      {},
      make(
        'tr',
        {},
        make('th', {scope: 'row'}, 'Sum'),
        make('td', {}, `is ${verdict}`),
        make('td', {class: 'value'}, number(sum, digits))
      )
    )
  )
}

const whyPanel = product =>
  make(
    'div',
    {class: 'card why'},
    make('h3', {}, `Why ${nameOf(product)}?`),
    make('p', {class: 'soft small'}, product.sentence ?? ''),
    shares(product)
  )

function toggleWhy(event, product) {
  const button = event.currentTarget,
    shelf = button.closest('.shelf'),
    open = button.getAttribute('aria-expanded') === 'true'
  for (const other of shelf.querySelectorAll('[aria-expanded]')) other.setAttribute('aria-expanded', 'false')
  shelf.querySelector(':scope > .why')?.remove()
  if (open) return
  button.setAttribute('aria-expanded', 'true')
  shelf.append(whyPanel(product))
}

// Products

function buttons(product, main = false) {
  const inCart = state.cart.has(product.product_id),
    name = nameOf(product)
  return make(
    'div',
    {class: 'do row'},
    make(
      'button',
      {
        'aria-label': `${inCart ? 'Remove from cart' : 'To cart'}: ${name}`,
        click: () => act(inCart ? 'remove_from_cart' : 'cart', [product])
      },
      inCart ? 'Remove' : 'To cart'
    ),
    make(
      'button',
      {class: main && 'main', 'aria-label': `Buy: ${name}`, click: () => act('purchase', [product])},
      'Buy'
    )
  )
}

function tile(product, fresh) {
  const name = nameOf(product)
  return make(
    'article',
    {class: `card tile${fresh ? ' fresh' : ''}`, 'data-product': product.product_id},
    make(
      'button',
      {class: 'look', 'aria-label': `Look at ${name}`, click: () => look(product)},
      picture(product),
      make('span', {class: 'title'}, name)
    ),
    make(
      'div',
      {class: 'facts'},
      make('span', {class: 'soft'}, product.brand ?? ''),
      make('b', {}, price(product.price))
    ),
    make('p', {class: 'reason'}, product.sentence ?? product.because ?? ''),
    product.reasons?.length
      ? make(
          'button',
          {
            class: 'plain',
            'aria-expanded': 'false',
            'aria-label': `Why ${name}?`,
            click: event => toggleWhy(event, product)
          },
          'Why? Exact shares'
        )
      : null,
    buttons(product)
  )
}

const SOURCES = {
  model: 'model',
  fold_in: 'folded in from what you do',
  content: 'by category, brand and price',
  buy_again: 'buy again',
  popular: 'popular',
  popular_in_category: 'popular in a category',
  random: 'by chance',
  similar: 'similar',
  fallback: 'the model server is away: popular products'
}

/** A list of the API as products that know their list. */
const productsOf = (list, because) =>
  list.items.map(item => ({...item, list: list.recommendation_id, because: because?.(item)}))

function showShelf(shelf, title, list, because) {
  const before = new Set(Array.from(shelf.querySelectorAll('.tile'), element => element.dataset.product))
  const products = productsOf(list, because),
    rail = make('div', {class: 'rail'})
  const isFresh = product => before.size > 0 && !before.has(String(product.product_id))
  rail.append(...products.map(product => tile(product, isFresh(product))))
  const at = shelf.querySelector('.rail')?.scrollLeft ?? 0
  const note = products.length
    ? rail
    : make('p', {class: 'soft'}, list.note ? `Nothing: ${list.note}.` : 'Nothing here yet.')
  shelf.replaceChildren(
    make(
      'div',
      {class: 'row'},
      make('h2', {}, title),
      make('span', {class: 'badge'}, SOURCES[list.source] ?? list.source)
    ),
    note
  )
  shelf.hidden = false
  rail.scrollLeft = at
}

// Shelves

const path = text => encodeURIComponent(text)
const session = body => call('POST', '/v1/sessions/recommendations', {k: LENGTH, explain: true, ...body})
const customerList = purpose =>
  call(
    'GET',
    `/v1/customers/${path(state.customer.customer)}/recommendations?k=${LENGTH}&purpose=${purpose}&explain=true`
  )

const forYou = () =>
  !state.session.length
    ? customerList('discover')
    : session({basket: state.session, customer_id: state.customer.customer, purpose: 'discover'})

/** What stands in the shop: a title, and how to get the list; null hides the shelf. */
const SHELVES = [
  {id: 'for-you', title: () => 'For you', list: () => (state.customer.known || state.session.length ? forYou() : null)},
  {id: 'buy-again', title: () => 'Buy again', list: () => (state.customer.known ? customerList('buy_again') : null)},
  {
    id: 'because',
    title: () => `Because you looked at ${nameOf(state.looked[0])}`,
    list: () =>
      state.looked.length
        ? session({
            basket: [{product_id: state.looked[0].product_id, event_type: 'view'}],
            purpose: 'discover'
          })
        : null
  },
  {id: 'popular', title: () => 'Popular', list: () => session({})}
]

async function fill(shelf, round) {
  const element = byId(shelf.id),
    asked = shelf.list()
  if (!asked) {
    element.hidden = true
    element.replaceChildren()
    return
  }
  const title = shelf.title(),
    list = await asked
  if (round === state.round) showShelf(element, title, list)
}

async function refresh() {
  const round = (state.round += 1)
  try {
    await Promise.all(SHELVES.map(shelf => fill(shelf, round)))
  } catch (error) {
    complain(error)
  }
  if (round !== state.round) return
  if (state.product) byId('product').querySelector('.do')?.replaceWith(buttons(state.product, true))
}

/** A button that is drawn anew takes the keyboard's place away: give it back, to the product or to its shelf. */
function placeOf(element) {
  const label = element?.getAttribute('aria-label') ?? ''
  return {section: element?.closest('section')?.id, name: label.split(': ')[1] ?? label, hadFocus: Boolean(label)}
}

function refocus({section, name, hadFocus}) {
  if (!hadFocus || document.activeElement !== document.body) return
  const buttons = Array.from((byId(section) ?? byId('shelves')).querySelectorAll('button'))
  const same = buttons.find(button => button.getAttribute('aria-label')?.endsWith(name))
  ;(same ?? buttons[0] ?? byId('shelves')).focus({preventScroll: true})
}

// The product that is looked at

async function showProduct() {
  const product = state.product,
    element = byId('product'),
    similar = make('section', {class: 'shelf', 'aria-label': 'Similar to this'})
  const category = /^\d*$/.test(product.category ?? '') ? '' : product.category.replaceAll('.', ' › ')
  element.replaceChildren(
    picture(product),
    make(
      'div',
      {},
      make('h2', {tabindex: -1}, nameOf(product)),
      make('p', {class: 'soft'}, [product.brand, category].filter(Boolean).join(' · ') || ' '),
      make('p', {class: 'price'}, price(product.price)),
      buttons(product, true),
      make('button', {class: 'plain', click: closeProduct}, 'Close')
    ),
    whyPanel(product),
    similar
  )
  element.hidden = false
  element.querySelector('h2').focus({preventScroll: true})
  element.scrollIntoView({block: 'start', behavior: 'smooth'})
  try {
    const list = await call('GET', `/v1/products/${path(product.product_id)}/similar?k=${LENGTH}`)
    showShelf(similar, 'Similar to this', list, item => `Similarity ${number(item.score ?? 0, 2)}`)
  } catch (error) {
    complain(error)
  }
}

function closeProduct() {
  state.product = null
  byId('product').hidden = true
  byId('shelves').focus({preventScroll: true})
}

// The cart

const cartRow = product =>
  make(
    'li',
    {},
    picture(product),
    make('span', {class: 'grow'}, nameOf(product)),
    make('b', {}, price(product.price)),
    make(
      'button',
      {'aria-label': `Remove from cart: ${nameOf(product)}`, click: () => act('remove_from_cart', [product])},
      'Remove'
    )
  )

function showCart() {
  const products = [...state.cart.values()],
    sum = products.reduce((total, p) => total + (p.price ?? 0), 0)
  byId('open-cart').textContent = products.length ? `Cart: ${products.length} · ${price(sum)}` : 'Cart'
  byId('cart').replaceChildren(
    make('h2', {}, 'Cart'),
    products.length ? make('ul', {}, products.map(cartRow)) : make('p', {class: 'soft'}, 'Nothing in it yet.'),
    products.length
      ? make('button', {class: 'main', click: () => act('purchase', products)}, `Buy all for ${price(sum)}`)
      : null
  )
}

function toggleCart() {
  const open = byId('cart').hidden
  byId('cart').hidden = !open
  byId('open-cart').setAttribute('aria-expanded', String(open))
  if (open) byId('cart').scrollIntoView({block: 'center'})
}

// Who you are

function showMe() {
  const {customer, known, products, bought} = state.customer
  const text = known
    ? `The model knows ${count(products, 'product')} of your history; you bought ${number(bought)} of them.`
    : 'The model does not know you: what you click in this visit is all that it goes by.'
  const drawn = state.bought
    .slice(0, 8)
    .map(item => make('li', {title: nameOf(item)}, picture(item), make('span', {class: 'skip'}, nameOf(item))))
  byId('me').replaceChildren(
    make(
      'div',
      {},
      make('h2', {}, known ? `You are customer ${customer}` : `You are new here: ${customer}`),
      make('p', {class: 'soft'}, text)
    ),
    drawn.length
      ? make(
          'div',
          {},
          make('p', {class: 'soft small'}, known && !bought ? 'Last' : 'Bought last'),
          make('ul', {class: 'recent'}, drawn)
        )
      : null
  )
}

/** Become somebody: a known customer as the API describes them, or a new visitor. */
async function be(customer) {
  Object.assign(state, {
    customer,
    session: [],
    looked: [],
    bought: customer.recent ?? [],
    product: null,
    cart: new Map()
  })
  byId('product').hidden = true
  byId('customer').value = ''
  for (const shelf of SHELVES) byId(shelf.id).replaceChildren()
  complain(null)
  showMe()
  showCart()
  await refresh()
}

const newcomer = (id = newId('visitor')) => ({customer: id, known: false})
const customersLike = (prefix, k) => call('GET', `/v1/window/customers?prefix=${path(prefix)}&k=${k}`)

async function beSomebody(first = false) {
  const customers = await customersLike('', 40),
    others = customers.filter(c => c.customer !== state.customer?.customer)
  const chosen = first ? others[0] : others[Math.floor(Math.random() * others.length)]
  await be(chosen ? {...chosen, known: true} : newcomer())
}

async function beById(id) {
  if (!id) return
  const exact = (await customersLike(id, 20)).find(customer => String(customer.customer) === id)
  await be(exact ? {...exact, known: true} : newcomer(id))
}

async function suggest() {
  const prefix = byId('customer').value.trim()
  if (!prefix) return
  const customers = await customersLike(prefix, 8)
  byId('customers').replaceChildren(
    ...customers.map(c =>
      make('option', {value: c.customer}, `${count(c.products, 'product')}, ${number(c.bought)} bought`)
    )
  )
}

// Start

const guarded = work => async event => {
  event?.preventDefault()
  try {
    await work()
  } catch (error) {
    complain(error)
  }
}

async function start() {
  byId('shelves').append(...SHELVES.map(shelf => make('section', {class: 'shelf', id: shelf.id, hidden: true})))
  byId('who').addEventListener(
    'submit',
    guarded(() => beById(byId('customer').value.trim()))
  )
  byId('customer').addEventListener('input', guarded(suggest))
  byId('somebody').addEventListener(
    'click',
    guarded(() => beSomebody())
  )
  byId('newcomer').addEventListener(
    'click',
    guarded(() => be(newcomer()))
  )
  byId('open-cart').addEventListener('click', toggleCart)
  const answer = await ask('GET', '/window/key')
  if (answer.status !== 200) throw new Error(failed(answer))
  state.key = answer.body.key
  const asked = decodeURIComponent(location.hash.slice(1))
  await (asked ? beById(asked) : beSomebody(true))
}

guarded(start)()

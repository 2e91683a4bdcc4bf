// Pictures of products, drawn from name and category: the same product always looks the same, nothing is loaded.
import {hash, svg} from './dom.js'

const path = (d, fill, more = {}) => svg('path', {d, fill, ...more})
const box = (x, y, width, height, rx, fill) => svg('rect', {x, y, width, height, rx, fill})
const disc = (cx, cy, r, fill) => svg('circle', {cx, cy, r, fill})
const line = (d, stroke, width) =>
  svg('path', {d, stroke, fill: 'none', 'stroke-width': width, 'stroke-linecap': 'round', 'stroke-linejoin': 'round'})

/** Colours of a product: its category gives the hue, its name the shade and the second colour. */
function colours(name, category) {
  const seed = hash(name),
    hue = hash(category || name) % 360,
    other = (hue + 40 + (seed % 7) * 40) % 360
  const light = 52 + ((seed >>> 8) % 14)
  return {
    main: `hsl(${hue} 48% ${light}%)`,
    dark: `hsl(${hue} 46% ${light - 16}%)`,
    pale: `hsl(${hue} 60% ${light + 26}%)`,
    other: `hsl(${other} 52% ${light - 4}%)`,
    ground: `hsl(${hue} 55% 55%)`,
    white: 'hsl(0 0% 100% / .82)',
    seed
  }
}

/** A label on a pack: lines, a dot, a wave or a leaf. */
function label(c, x, y, width, height) {
  const middle = x + width / 2,
    marks = [
      () => [
        box(x + 4, y + height * 0.3, width - 8, 2.5, 1, c.dark),
        box(x + 8, y + height * 0.55, width - 16, 2.5, 1, c.other)
      ],
      () => [disc(middle, y + height / 2, Math.min(width, height) * 0.24, c.other)],
      () => [
        line(
          `M${x + 5} ${y + height / 2}q${width / 8} -7 ${width / 4 - 2} 0t${width / 4 - 2} 0t${width / 4 - 2} 0`,
          c.other,
          3
        )
      ],
      () => [
        path(`M${middle} ${y + 3}q9 ${height / 2 - 3} 0 ${height - 6}q-9 ${3 - height / 2} 0 ${6 - height}`, c.other)
      ]
    ]
  return [box(x, y, width, height, 2, c.white), ...marks[(c.seed >>> 4) % marks.length]()]
}

const SHAPES = {
  bottle: c => [
    box(52, 18, 16, 14, 3, c.dark),
    path('M48 34h24q10 8 10 20v40q0 8-8 8H46q-8 0-8-8V54q0-12 10-20z', c.main),
    path('M48 34h5q-8 8-8 20v48q-7 0-7-8V54q0-12 10-20z', c.pale),
    ...label(c, 44, 58, 32, 28)
  ],
  pump: c => [
    line('M60 34V20h16', c.dark, 6),
    box(50, 28, 20, 9, 2, c.dark),
    box(38, 37, 44, 66, 9, c.main),
    box(38, 37, 9, 66, 5, c.pale),
    ...label(c, 46, 54, 30, 34)
  ],
  jar: c => [
    box(34, 34, 52, 18, 5, c.dark),
    box(30, 52, 60, 46, 12, c.main),
    box(30, 52, 11, 46, 6, c.pale),
    ...label(c, 42, 62, 38, 24)
  ],
  tube: c => [
    box(49, 86, 22, 18, 4, c.dark),
    path('M40 18h40l-7 68H47z', c.main),
    path('M40 18h10l3 68h-6z', c.pale),
    box(38, 14, 44, 7, 2, c.dark),
    ...label(c, 48, 36, 25, 30)
  ],
  polish: c => [
    path('M52 14h16l4 42H48z', 'hsl(220 12% 28%)'),
    path('M53 14h4l-2 42h-5z', 'hsl(220 10% 46%)'),
    box(36, 56, 48, 46, 12, c.main),
    box(36, 56, 10, 46, 6, c.pale),
    disc(70, 80, 8, c.other)
  ],
  lipstick: c => [
    path('M50 40V26q10-12 20-4v18z', c.main),
    path('M50 40V26q4-5 8-7v21z', c.pale),
    box(48, 40, 24, 22, 2, 'hsl(45 50% 66%)'),
    box(44, 60, 32, 42, 4, c.dark),
    box(44, 60, 8, 42, 4, c.other)
  ],
  compact: c => [
    disc(60, 50, 30, c.dark),
    disc(60, 50, 24, 'hsl(205 30% 86%)'),
    line('M48 58l20-20M58 62l14-14', 'hsl(0 0% 100% / .9)', 3),
    svg('ellipse', {cx: 60, cy: 86, rx: 34, ry: 16, fill: c.dark}),
    svg('ellipse', {cx: 60, cy: 84, rx: 27, ry: 11, fill: c.main}),
    svg('ellipse', {cx: 52, cy: 82, rx: 12, ry: 5, fill: c.pale})
  ],
  brush: c => [
    line('M34 98L70 52', c.dark, 9),
    line('M62 62L72 49', 'hsl(45 45% 68%)', 12),
    path('M68 40q6-18 24-24q6 20-8 34q-8 6-14 4q-6-6-2-14z', c.main),
    path('M68 40q6-18 24-24q-14 16-18 36q-8-4-6-12z', c.pale)
  ],
  comb: c => [
    box(28, 40, 64, 16, 7, c.main),
    box(28, 40, 64, 6, 3, c.pale),
    ...[34, 42, 50, 58, 66, 74, 82].map(x => box(x, 54, 4, 32, 2, c.main))
  ],
  tweezers: c => [
    line('M42 20L56 98M78 20L64 98', c.main, 7),
    path('M38 14h44l-6 20H44z', c.dark),
    disc(60, 24, 4, c.pale)
  ],
  sachet: c => [
    path('M34 24l5-4 5 4 5-4 5 4 6-4 5 4 5-4 5 4 5-4 6 4v76l-6 4-5-4-5 4-5-4-6 4-5-4-5 4-5-4-5 4-5-4z', c.main),
    box(34, 34, 52, 4, 0, c.pale),
    ...label(c, 42, 46, 36, 38)
  ],
  box: c => [
    path('M60 22l36 16-36 16-36-16z', c.pale),
    path('M24 38l36 16v48L24 84z', c.main),
    path('M96 38L60 54v48l36-18z', c.dark),
    path('M42 30l36 16v14l-6-4-6 10V51L31 35z', c.other)
  ],
  bag: c => [
    line('M46 44V34a14 14 0 0 1 28 0v10', c.dark, 5),
    path('M32 42h56l6 60H26z', c.main),
    path('M32 42h9l-5 60H26z', c.pale),
    ...label(c, 44, 58, 32, 26)
  ],
  shirt: c => [
    path('M44 24q16 12 32 0l24 14-9 20-11-5v48H40V53l-11 5-9-20z', c.main),
    path('M44 24q16 12 32 0l-4 10q-12 6-24 0z', c.pale),
    disc(60, 66, 9, c.other)
  ],
  glove: c => [
    path('M44 84V62L32 50q-4-9 4-11l10 9V28q2-10 12-10h14q12 1 12 13v53z', c.main),
    box(40, 84, 48, 18, 6, c.dark),
    path('M46 48V28q2-10 10-10v40z', c.pale)
  ],
  shoe: c => [
    path('M22 58q10 6 20-8l30 20q22 4 26 16v8H22z', c.main),
    box(20, 90, 80, 9, 4, c.dark),
    line('M50 58l-6 8M58 63l-6 8M66 69l-6 7', c.pale, 4)
  ],
  device: c => [
    box(26, 24, 68, 74, 8, 'hsl(220 14% 26%)'),
    box(32, 30, 56, 56, 3, c.main),
    path('M32 33q0-3 3-3h46L32 74z', c.pale),
    disc(60, 92, 3, c.pale)
  ],
  book: c => [
    path('M32 22h50q6 0 6 6v70H38q-6 0-6-6z', c.main),
    box(32, 22, 10, 76, 3, c.dark),
    path('M38 90h50v8H38q-4-4 0-8z', c.white),
    ...label(c, 50, 36, 28, 30)
  ],
  cup: c => [
    line('M82 48h8a12 12 0 0 1 0 26h-10', c.dark, 6),
    path('M32 40h52v40q0 20-20 20H52q-20 0-20-20z', c.main),
    path('M32 40h9v48q2 8 8 12q-17-2-17-20z', c.pale),
    line('M48 30q-5-6 0-12M62 30q-5-6 0-12', c.other, 3)
  ],
  fruit: c => [
    disc(48, 70, 28, c.main),
    disc(74, 70, 26, c.main),
    disc(40, 60, 9, c.pale),
    line('M60 46q0-14 8-22', c.dark, 5),
    path('M68 32q14-14 26-6q-10 14-26 6z', 'hsl(110 36% 46%)')
  ],
  chair: c => [
    box(40, 18, 40, 42, 8, c.main),
    box(36, 60, 48, 14, 5, c.dark),
    line('M42 74l-6 28M78 74l6 28', c.dark, 6),
    box(40, 18, 9, 42, 5, c.pale)
  ]
}

/** Which words mean which shape; the first that fits counts. */
const WORDS = [
  ['tweezers', /tweezer|scissor|clipper|\bfile|nipper|knife|tool|spatula|buffer/],
  ['polish', /polish|lacquer|lak|nail|base coat|top coat|cuticle|gel color/],
  ['lipstick', /lip(stick| |$)|gloss|balm/],
  ['brush', /brush|mascara|liner|pencil|marker|pen\b/],
  ['comb', /comb|hair (clip|band)/],
  ['compact', /powder|bronzer|blush|shadow|highlight|contour|foundation|palette|concealer/],
  ['sachet', /mask|sachet|patch|wipe|sheet|snack|chips|coffee bean|seed/],
  ['jar', /cream|butter|scrub|wax|honey|jam|yogh?urt|sugar|pomade|peel/],
  ['pump', /soap|lotion|wash|shampoo|conditioner|sanit|gel|foam/],
  ['tube', /tooth|tube|hand |foot|sun|primer|paste|serum/],
  ['bottle', /oil|water|toner|spray|perfume|cologne|drink|juice|milk|beer|wine|sauce|cleanser|remover|tonic|bottle/],
  ['glove', /glove|mitten/],
  ['bag', /bag|purse|wallet|backpack|suitcase|accessor/],
  ['shoe', /shoe|boot|sneaker|sandal|slipper/],
  ['shirt', /shirt|dress|jacket|coat|sweater|jean|trouser|skirt|sock|apparel|wear|cloth/],
  ['device', /phone|tablet|laptop|computer|screen|tv\b|camera|electronic|appliance|lamp|charger|headphone|dryer/],
  ['book', /book|novel|magazine|stationery|notebook|calendar/],
  ['cup', /cup|mug|tea\b|coffee|kitchen|pan\b|pot\b|bowl/],
  ['fruit', /fruit|apple|vegetable|banana|salad|berry|grocery|produce|bread|meat|cheese|pizza|food/],
  ['chair', /chair|table|sofa|bed\b|furniture|desk|shelf|pillow/]
]
const PLAIN = ['box', 'bottle', 'jar', 'bag', 'tube', 'pump', 'sachet']

export function shapeOf(name, category) {
  const text = `${name ?? ''} ${category ?? ''}`.toLowerCase()
  return (WORDS.find(([, words]) => words.test(text)) ?? [PLAIN[hash(category || name) % PLAIN.length]])[0]
}

/** The picture of a product; it says nothing that the name beside it does not. */
export function picture(product) {
  const name = String(product.name ?? product.product_id),
    c = colours(name, product.category)
  const size = 0.9 + ((c.seed >>> 12) % 5) * 0.05,
    side = 60 - 60 * size
  return svg(
    'svg',
    {viewBox: '0 0 120 120', class: 'picture', 'aria-hidden': 'true', focusable: 'false'},
    svg('rect', {width: 120, height: 120, fill: c.ground, 'fill-opacity': 0.14}),
    svg('circle', {cx: 20 + (c.seed % 80), cy: 26, r: 34, fill: c.ground, 'fill-opacity': 0.1}),
    svg('ellipse', {cx: 60, cy: 105, rx: 34, ry: 5, fill: 'hsl(220 20% 20%)', 'fill-opacity': 0.16}),
    svg(
      'g',
      {transform: `translate(${side} ${side * 1.75}) scale(${size})`},
      SHAPES[shapeOf(name, product.category)](c)
    )
  )
}

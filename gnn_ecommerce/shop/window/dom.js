// Elements, numbers and ids. Text enters a page as text nodes only, so no name can become markup.

const SVG = 'http://www.w3.org/2000/svg'

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue
    if (typeof value === 'function') element.addEventListener(name, value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined))
  return element
}

/** An HTML element: make('p', {class: 'soft'}, 'text'). Functions are listeners: {click: () => ...}. */
export const make = (name, properties = {}, ...children) => filled(document.createElement(name), properties, children)

/** The same for SVG. */
export const svg = (name, properties = {}, ...children) =>
  filled(document.createElementNS(SVG, name), properties, children)

export const byId = id => document.getElementById(id)

const LANGUAGE = 'en'
export const number = (value, digits = 0) =>
  value.toLocaleString(LANGUAGE, {minimumFractionDigits: digits, maximumFractionDigits: digits})
export const percent = (value, digits = 1) => `${number(100 * value, digits)} %`
export const price = value => (value === null || value === undefined ? '' : number(value, 2))
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`

/** 32 bits that look random and are always the same for a text (FNV-1a). */
export function hash(text) {
  let bits = 0x811c9dc5
  for (const letter of String(text)) bits = Math.imul(bits ^ letter.codePointAt(0), 0x01000193)
  return (bits ^ (bits >>> 15)) >>> 0
}

/** An id that nobody else has; crypto.randomUUID is there on secure origins only. */
export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(12))
  return `${prefix}-${Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('')}`
}

/** Ask the API. Answers {status, body, ms}; body is null for an answer without one. */
export async function ask(method, path, key, body) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {}
  if (body) headers['Content-Type'] = 'application/json'
  const start = performance.now()
  const answer = await fetch(path, {method, headers, body: body && JSON.stringify(body)})
  const text = await answer.text()
  let read = null
  try {
    read = JSON.parse(text)
  } catch {
    /* not JSON: an answer from something between */
  }
  return {status: answer.status, body: read, ms: performance.now() - start}
}

export const failed = answer => answer.body?.detail ?? `status ${answer.status}`

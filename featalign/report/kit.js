// Helpers that every widget shares. Text from data reaches the page through textContent alone.
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const drawing = (tag, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const finite = (value) => typeof value === "number" && Number.isFinite(value);
const short = (value) => (finite(value) ? Number(value.toPrecision(3)).toString() : "–");
const two = (value) => (finite(value) ? value.toFixed(2) : "–");
const percent = (value) => {
  if (!finite(value)) return "–";
  const shown = 100 * value;
  return (shown === 0 || shown >= 10 ? shown.toFixed(0) : Number(shown.toPrecision(2)).toString()) + " %";
};
const whole = (value) => Number(value).toLocaleString("en");

// Numbers from base64 under their kind.
const NUMBERS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
function numbersOf(packed) {
  const kind = Object.keys(packed || {}).find((key) => NUMBERS[key]);
  if (!kind) return new Float32Array(0);
  return new NUMBERS[kind](bytesOf(packed[kind]).buffer);
}
function bytesOf(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}
async function inflated(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Shards of a widget, from its content or from files beside the page, each opened once.
function shardsOf(content) {
  const open = new Map();
  return (place) => {
    if (!open.has(place)) {
      const text = content.files ? fileText(content.files[place]) : Promise.resolve(content.shards[place]);
      open.set(place, text.then(inflated));
      if (open.size > 24) open.delete(open.keys().next().value);
    }
    return open.get(place);
  };
}
// A file beside the page is a script that hands its text over: scripts are what a page opened from a disk may read.
function fileText(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    globalThis.featalignFile = globalThis.featalignFile || ((name, text) => {
      const waiting = globalThis.featalignFile.waiting.get(name);
      if (waiting) waiting(text);
    });
    globalThis.featalignFile.waiting = globalThis.featalignFile.waiting || new Map();
    globalThis.featalignFile.waiting.set(path, resolve);
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error("the file " + path + " beside this page is missing"));
    script.src = path;
    document.head.append(script);
  });
}

// A sheet of pictures, ready to be drawn from.
function sheetOf(packed) {
  if (!packed || !packed.png) return null;
  const places = new Map(Array.from(numbersOf(packed.members), (member, place) => [member, place]));
  const image = new Image();
  const ready = new Promise((resolve) => { image.onload = resolve; image.onerror = resolve; });
  image.src = "data:image/png;base64," + packed.png;
  return { image, places, ready, width: packed.width, height: packed.height, columns: packed.columns };
}

// A labelled control.
function labelled(text, control, name) {
  const label = make("label", name || "");
  label.append(make("span", "", text), control);
  return label;
}
function choice(entries, chosen, change) {
  const select = make("select");
  entries.forEach(([key, text]) => {
    const option = make("option", "", text);
    option.value = key;
    option.selected = key === chosen;
    select.append(option);
  });
  select.onchange = () => change(select.value);
  return select;
}

// Bars of equal width with a caption, the words of each under the pointer and for a screen reader.
function bars(values, words, caption, ends) {
  const box = make("figure", "bars"), columns = make("div", "columns"), top = Math.max(...values, 1e-12);
  columns.setAttribute("role", "img");
  columns.setAttribute("aria-label", caption + ": " + words.join("; "));
  values.forEach((value, i) => {
    const bar = make("i");
    bar.style.height = (value > 0 ? Math.max(2, (100 * value) / top) : 0) + "%";
    const column = make("span");
    column.title = words[i];
    column.append(bar);
    columns.append(column);
  });
  const axis = make("div", "axis");
  ends.forEach((end) => axis.append(make("span", "", end)));
  box.append(make("figcaption", "", caption), columns, axis);
  return box;
}

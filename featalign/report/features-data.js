// The features of a browser as lists that can be filtered and sorted: no part of the page is touched here.
const OWN = 3, DEAD = 4, NO_CLASS = 65535;

function featureData(content) {
  const blocks = content.blocks.map((block) => {
    const read = { ...block };
    for (const name of ["density", "mean", "max", "energy", "kind", "score", "x", "y", "words", "class"]) {
      read[name] = numbersOf(block[name]);
    }
    read.perWord = Math.max(1, Math.round(read.words.length / Math.max(1, block.latents)));
    return read;
  });
  const tables = content.pairs.map((table) => {
    const read = { ...table };
    for (const name of ["latent_a", "latent_b", "score", "rival", "null", "gain", "energy", "overlap", "kind"]) {
      read[name] = numbersOf(table[name]);
    }
    return read;
  });
  const sheets = content.sheets.map(sheetOf);
  return { content, blocks, tables, sheets, shard: shardsOf(content) };
}

// What can be looked at: at every site the pairs of clients that were matched, else each client alone.
function viewsOf(data) {
  const { content, blocks, tables } = data, views = [];
  content.sites.forEach((site, s) => {
    const matched = tables.filter((table) => table.site === s);
    const seen = new Set(matched.flatMap((table) => [table.a, table.b]));
    const block = (client) => blocks.find((each) => each.site === s && each.client === client);
    matched.forEach((table) => views.push({ site: s, table, a: block(table.a), b: block(table.b) }));
    blocks.filter((each) => each.site === s && !seen.has(each.client)).forEach((a) => views.push({ site: s, a, b: null }));
  });
  views.forEach((view) => {
    const names = [view.a, view.b].filter(Boolean).map((each) => content.clients[each.client]);
    view.name = names.join(" ↔ ");
  });
  return views;
}

// Items of a view: its pairs, then what has no partner. Of each, latents of a and b (-1 for none), pair and kind.
function itemsOf(view) {
  if (view.items) return view.items;
  const { a, b, table } = view, pairs = table ? table.latent_a.length : 0;
  const kindA = new Uint8Array(a.latents).fill(255), kindB = new Uint8Array(b ? b.latents : 0).fill(255);
  for (let p = 0; p < pairs; p++) {
    kindA[table.latent_a[p]] = Math.min(kindA[table.latent_a[p]], table.kind[p]);
    kindB[table.latent_b[p]] = Math.min(kindB[table.latent_b[p]], table.kind[p]);
  }
  const rest = [];
  [[a, kindA, 0], [b, kindB, 1]].forEach(([block, kinds, side]) => {
    if (!block) return;
    for (let j = 0; j < block.latents; j++) {
      if (kinds[j] !== 255) continue;
      kinds[j] = block.kind[j] !== DEAD && block.density[j] > 0 ? OWN : DEAD;
      rest.push([side, j]);
    }
  });
  const count = pairs + rest.length, items = { count, pairs, kindA, kindB };
  items.a = new Int32Array(count).fill(-1);
  items.b = new Int32Array(count).fill(-1);
  items.kind = new Uint8Array(count);
  for (let p = 0; p < pairs; p++) {
    items.a[p] = table.latent_a[p];
    items.b[p] = table.latent_b[p];
    items.kind[p] = table.kind[p];
  }
  rest.forEach(([side, j], i) => {
    (side ? items.b : items.a)[pairs + i] = j;
    items.kind[pairs + i] = (side ? kindB : kindA)[j];
  });
  items.byA = firsts(items.a, a.latents);
  items.byB = b ? firsts(items.b, b.latents) : new Int32Array(0);
  view.items = items;
  return items;
}
function firsts(latents, count) {
  const found = new Int32Array(count).fill(-1);
  for (let i = latents.length - 1; i >= 0; i--) if (latents[i] >= 0) found[latents[i]] = i;
  return found;
}

// The group that an item is counted and filtered under: a kind of pair, own of one client, or dead (too rarely active to say).
function groupOf(items, i) {
  const kind = items.kind[i];
  if (kind === OWN) return items.a[i] >= 0 ? "own-a" : "own-b";
  return kind === DEAD ? "dead" : ["matched", "split", "merged"][kind] || "matched";
}
function groupsOf(view, data) {
  if (view.groups) return view.groups;
  const items = itemsOf(view), counts = {}, name = (block) => data.content.clients[block.client];
  for (let i = 0; i < items.count; i++) counts[groupOf(items, i)] = (counts[groupOf(items, i)] || 0) + 1;
  const words = {
    matched: "matched", split: "split", merged: "merged", "own-a": view.b ? "only in " + name(view.a) : "active",
    "own-b": view.b ? "only in " + name(view.b) : "", dead: "dead",
  };
  view.groups = Object.keys(words).filter((key) => counts[key]).map((key) => [key, words[key], counts[key]]);
  return view.groups;
}

const SORTS = [["score", "score"], ["density", "density"], ["energy", "energy"], ["max", "maximum"], ["kind", "kind"], ["latent", "number"]];
function measureOf(view, name, i) {
  const items = itemsOf(view), a = items.a[i], b = items.b[i];
  if (name === "kind") return -items.kind[i];
  if (name === "latent") return -(a >= 0 ? a : b);
  if (name === "score" && i < items.pairs) return view.table.score[i];
  return Math.max(a >= 0 ? view.a[name][a] : -Infinity, b >= 0 ? view.b[name][b] : -Infinity);
}

// Items that pass the filters, in order.
function chosenItems(data, view, state) {
  const items = itemsOf(view), hit = searched(data, state.query), found = [];
  for (let i = 0; i < items.count; i++) {
    if (state.hidden.has(groupOf(items, i)) || !hit(view, items, i)) continue;
    const score = measureOf(view, "score", i), density = 100 * measureOf(view, "density", i);
    if (state.scoreFrom !== null && !(score >= state.scoreFrom)) continue;
    if (state.scoreTo !== null && !(score <= state.scoreTo)) continue;
    if (state.densityFrom !== null && !(density >= state.densityFrom)) continue;
    if (state.densityTo !== null && !(density <= state.densityTo)) continue;
    found.push(i);
  }
  const keys = new Float64Array(items.count);
  found.forEach((i) => {
    const key = measureOf(view, state.sort, i);
    keys[i] = numbered(view, i, state.query) ? Infinity : Number.isFinite(key) ? key : -1e300;
  });
  return found.sort((p, q) => (keys[q] > keys[p]) - (keys[q] < keys[p]) || p - q);
}

// A search finds words (of the contexts, or columns), names of classes, and numbers of latents, these first.
const numberIn = (query) => (/^\s*#?\d+\s*$/.test(query) ? Number(query.replace("#", "")) : -1);
function numbered(view, i, query) {
  const number = numberIn(query), items = itemsOf(view);
  return number >= 0 && (items.a[i] === number || items.b[i] === number);
}
function searched(data, query) {
  const text = query.trim().toLowerCase();
  if (!text) return () => true;
  const { strings, classes } = data.content;
  const words = new Uint8Array(strings.length), number = numberIn(query);
  strings.forEach((string, k) => { words[k] = k && string.toLowerCase().includes(text) ? 1 : 0; });
  const named = classes.map((name) => String(name).toLowerCase().includes(text));
  const found = (block, latent) => {
    if (latent < 0) return false;
    if (latent === number || named[block.class[latent]]) return true;
    const start = latent * block.perWord;
    for (let k = start; k < start + block.perWord; k++) if (words[block.words[k]]) return true;
    return false;
  };
  return (view, items, i) => found(view.a, items.a[i]) || found(view.b, items.b[i]);
}

// What a feature is about in a few words: the commonest first, or its class.
function labelOf(data, block, latent) {
  const counts = new Map(), start = latent * block.perWord;
  for (let k = start; k < start + block.perWord; k++) {
    const word = data.content.strings[block.words[k]];
    if (word) counts.set(word, (counts.get(word) || 0) + 1);
  }
  const words = [...counts].sort((p, q) => q[1] - p[1]).slice(0, 4).map(([word]) => word);
  const name = data.content.classes[block.class[latent]];
  return [...words, ...(block.class[latent] !== NO_CLASS && name !== undefined ? [String(name)] : [])].join(" · ");
}
function nameOf(data, block, latent) {
  return data.content.clients[block.client] + " " + latent;
}
function titleOf(data, view, i) {
  const items = itemsOf(view), a = items.a[i], b = items.b[i];
  if (a >= 0 && b >= 0) return nameOf(data, view.a, a) + " ↔ " + nameOf(data, view.b, b);
  return a >= 0 ? nameOf(data, view.a, a) : nameOf(data, view.b, b);
}

// The card of a feature, or of two that go together side by side: the same contexts in both.
const LEVELS = 255, SPACES = new Map([["\n", "↵"], ["\t", "⇥"]]);

// `go(client, latent)` opens another feature.
async function featureCard(data, view, i, go) {
  const items = itemsOf(view), { content } = data;
  const sides = [[view.a, items.a[i]], [view.b, items.b[i]]].filter(([block, latent]) => block && latent >= 0);
  const rows = await Promise.all(sides.map(async ([block, latent]) => {
    const shard = await data.shard(block.first + Math.floor(latent / content.per));
    return shard[latent % content.per];
  }));
  await Promise.all(data.sheets.filter(Boolean).map((sheet) => sheet.ready));
  const card = make("article", "feature");
  card.append(heading(data, view, i));
  if (i < items.pairs) card.append(pairFacts(data, view.table, i));
  const summaries = make("div", sides.length > 1 ? "sides two" : "sides");
  sides.forEach(([block, latent], k) => summaries.append(summary(data, block, latent, rows[k], go)));
  card.append(summaries, partners(data, view, i, go), contexts(data, sides, rows));
  return card;
}

function heading(data, view, i) {
  const head = make("h3", "", titleOf(data, view, i)), group = groupOf(itemsOf(view), i);
  const words = new Map(groupsOf(view, data).map(([key, text]) => [key, text]));
  const chip = make("span", "chip " + group, words.get(group));
  head.append(" ", chip);
  return head;
}

function pairFacts(data, table, p) {
  const facts = make("dl", "facts"), { terms } = table;
  [["score", two], ["rival", two], ["null", two], ["gain", (v) => "× " + short(v)], ["overlap", percent], ["energy", short]]
    .forEach(([name, shown]) => {
      const value = table[name][p];
      if (table[name].length === 0 || !Number.isFinite(value)) return;
      const pair = make("div");
      pair.append(make("dt", "", terms[name] || name), make("dd", "", shown(value)));
      facts.append(pair);
    });
  return facts;
}

function summary(data, block, latent, row, go) {
  const { content } = data, box = make("div", "side");
  const noun = content.nouns[block.client];
  box.append(make("h4", "", content.clients[block.client] + ", " + noun + " " + latent));
  const fires = "active on " + percent(block.density[latent]) + " of " + whole(block.rows) + " " + content.row;
  const strength = "; there " + short(block.mean[latent]) + " on average, " + short(block.max[latent]) + " at most";
  box.append(make("p", "small", row ? fires + strength : "never active on these inputs"));
  if (block.notes && block.notes[latent]) box.append(make("p", "small", block.notes[latent]));
  if (!row) return box;
  const [histogram, positions, profile, raised, lowered, near, columns] = row, charts = make("div", "charts");
  charts.append(histogramOf(histogram, content.row));
  if (positions.length > 1) charts.append(positionsOf(positions));
  if (profile.length) charts.append(profileOf(data, profile));
  box.append(charts);
  if (columns.length) box.append(chips("unusual on the inputs that drive it, in standard deviations", columns.map(
    ([name, value]) => [content.strings[name], (value > 0 ? "+" : "−") + Math.abs(value).toFixed(1)])));
  if (raised.length || lowered.length) box.append(effects(data, block, raised, lowered));
  if (near.length) box.append(links("nearest in direction (cosine of the atoms)", near.map(
    ([other, cosine]) => [noun + " " + other, two(cosine), () => go(block.client, other)])));
  return box;
}

function histogramOf([first, counts], unit) {
  const edge = (k) => 2 ** ((first + k) / 4);
  const words = counts.map((n, k) => short(edge(k)) + " to " + short(edge(k + 1)) + ": " + whole(n) + " " + unit);
  return bars(counts, words, "activations, logarithmic", [short(edge(0)), short(edge(counts.length))]);
}
function positionsOf(values) {
  const span = (k) => (k < 2 ? String(k) : 2 ** (k - 1) + "–" + (2 ** k - 1));
  const words = values.map((v, k) => "position " + span(k) + ": " + Math.round((100 * v) / LEVELS) + " % of the highest");
  return bars(values.map((v) => v || 0), words, "mean by position", [span(0), span(values.length - 1)]);
}
function profileOf(data, profile) {
  const name = (c) => String(data.content.classes[c] ?? c);
  const words = profile.map(([c, share]) => name(c) + ": " + percent(share / LEVELS));
  const values = profile.map(([, share]) => share), chart = bars(values, words, "mean by class", []);
  const top = values.indexOf(Math.max(...values)), axis = chart.lastChild;
  if (profile.length <= 12 && profile.every(([c]) => name(c).length <= 3)) {
    axis.className = "axis each";
    profile.forEach(([c]) => axis.append(make("span", "", name(c))));
  } else {
    axis.append(make("span", "", "most: " + words[top]));
  }
  return chart;
}

function chips(title, entries) {
  const box = make("div", "chips");
  box.append(make("p", "small", title));
  entries.forEach(([text, value]) => {
    const chip = make("span", "pill");
    chip.append(make("b", "", text), make("span", "", value));
    box.append(chip);
  });
  return box;
}
function links(title, entries) {
  const box = make("div", "chips");
  box.append(make("p", "small", title));
  entries.forEach(([text, value, act]) => {
    const button = make("button", "pill");
    button.type = "button";
    button.append(make("b", "", text), make("span", "", value));
    button.onclick = act;
    box.append(button);
  });
  return box;
}
function effects(data, block, raised, lowered) {
  const box = make("div", "effects");
  const line = make("p", "small", "effect on the outputs");
  if (block.effect) {
    const why = make("abbr", "", "how measured");
    why.title = block.effect;
    line.append(" (", why, ")");
  }
  box.append(line);
  [["raises", raised, "up"], ["lowers", lowered, "down"]].forEach(([title, entries, kind]) => {
    if (!entries.length) return;
    const list = make("ul", kind), top = Math.max(...entries.map(([, value]) => Math.abs(value)), 1e-12);
    list.setAttribute("aria-label", title);
    entries.forEach(([name, value]) => {
      const item = make("li"), bar = make("i");
      bar.style.width = (100 * Math.abs(value)) / top + "%";
      item.append(bar, tokenText(data.content.strings[name]), make("span", "", (value < 0 ? "−" : "+") + short(Math.abs(value))));
      list.append(item);
    });
    box.append(list);
  });
  return box;
}
function tokenText(text) {
  return make("code", "", text.replace(/^ | $|[\n\t]/g, (letter) => ({ " ": "␣", "\n": "↵", "\t": "⇥" })[letter]) || "∅");
}

// Everything else that either side is linked to, here and in other pairs of clients.
function partners(data, view, i, go) {
  const items = itemsOf(view), box = make("div"), { content } = data;
  [[view.a, items.a[i], "a"], [view.b, items.b[i], "b"]].forEach(([block, latent, side]) => {
    if (!block || latent < 0) return;
    data.tables.filter((table) => table.site === view.site).forEach((table) => {
      ["a", "b"].forEach((end) => {
        if (table[end] !== block.client) return;
        const own = table["latent_" + end], far = end === "a" ? "b" : "a", found = [];
        for (let p = 0; p < own.length; p++) {
          if (own[p] !== latent || (table === view.table && p === i)) continue;
          found.push(p);
        }
        if (!found.length) return;
        found.sort((p, q) => table.score[q] - table.score[p]);
        const title = nameOf(data, block, latent) + " also goes with (" + table.terms.score + ")";
        box.append(links(title, found.map((p) => {
          const other = table["latent_" + far][p];
          return [content.clients[table[far]] + " " + other, two(table.score[p]), () => go(table[far], other, table)];
        })));
      });
    });
  });
  return box;
}

// Contexts of one or two features; the strongest in both come first.
function contexts(data, sides, rows) {
  const box = make("div", "contexts"), joined = new Map(), pair = sides.length > 1;
  const together = pair && sides[0][0].group === sides[1][0].group;
  rows.forEach((row, k) => {
    (row ? row[8] : []).forEach((context) => {
      const [kind, input, position, , , , acts, theirs] = context, key = together ? input + ":" + position : k + ":" + input + ":" + position;
      const entry = joined.get(key) || { kind, context, acts: [null, null] };
      entry.kind = Math.min(entry.kind, kind);
      entry.acts[k] = { acts, value: context[3] };
      const partner = row[7], other = sides[1 - k];
      const fits = pair && theirs && partner && partner[0] === other[0].client && partner[1] === other[1];
      if (fits && !entry.acts[1 - k]) entry.acts[1 - k] = { acts: theirs, value: null };
      joined.set(key, entry);
    });
  });
  const strength = (entry, k) => {
    const acts = entry.acts[k];
    return acts ? Math.max(0, ...(acts.acts.length ? acts.acts : [LEVELS])) : 0;
  };
  const rank = (entry) => (pair ? Math.min(strength(entry, 0), strength(entry, 1)) * 1e4 : 0) + strength(entry, 0) + strength(entry, 1);
  [[0, "Contexts that drive " + (pair ? "them" : "it") + " most"], [1, "Contexts of ordinary strength, drawn at random"]].forEach(([kind, title]) => {
    const found = [...joined.values()].filter((entry) => entry.kind === kind).sort((p, q) => rank(q) - rank(p));
    if (!found.length) return;
    const text = found[0].context[5].length > 0;
    const grid = make("div", text ? "strips" : "gallery");
    box.append(make("h4", "", title));
    if (box.children.length === 1) box.append(legend(text, together, data, sides));
    box.append(grid);
    found.forEach((entry) => grid.append(text ? strips(data, sides, entry) : pictured(data, sides, entry)));
  });
  if (!joined.size) box.append(make("p", "small", "No context of these features is among the inputs that this page holds."));
  return box;
}

function legend(text, together, data, sides) {
  const names = sides.map(([block, latent]) => nameOf(data, block, latent)), line = make("p", "legend");
  if (text) {
    line.append("not active ", make("span", "scale"), " its maximum; ", make("b", "top", "underlined"), ": where it is strongest. ");
  }
  if (together) line.append("Left " + names[0] + ", right " + names[1] + ", on the same inputs; those that drive both come first.");
  return line;
}

function strips(data, sides, entry) {
  const row = make("div", "strip" + (sides.length > 1 ? " two" : ""));
  sides.forEach(([block, latent], k) => {
    const cell = make("div", "cell"), acts = entry.acts[k];
    const value = acts ? (acts.value === null ? shareOf(acts.acts, block, latent) : short(acts.value)) : "";
    const line = make("p", "tokens");
    entry.context[5].forEach((word, t) => {
      const level = acts ? acts.acts[t] / LEVELS : 0, middle = t === entry.context[4];
      const text = data.content.strings[word], token = make("span", middle ? "top" : "", SPACES.get(text) ?? text);
      if (level > 0.02) token.style.setProperty("--level", level.toFixed(2));
      if (acts && level > 0.02) token.title = "activation " + short(level * block.max[latent]);
      line.append(token);
    });
    const figure = make("span", "value", acts ? value : "not read");
    figure.title = "input " + entry.context[1] + ", position " + entry.context[2];
    figure.prepend(make("span", "who", nameOf(data, block, latent)));
    cell.append(figure, line);
    row.append(cell);
  });
  return row;
}
function shareOf(acts, block, latent) {
  return short((Math.max(0, ...acts) / LEVELS) * block.max[latent]);
}

function pictured(data, sides, entry) {
  const [, input, position] = entry.context, box = make("figure", "picture");
  const sheet = data.sheets[sides[0][0].group], place = sheet ? sheet.places.get(input) : undefined;
  if (place !== undefined) box.append(...drawn(sheet, place, sides[0][0].field, position));
  const words = sides.map(([block, latent], k) => {
    const acts = entry.acts[k];
    if (!acts) return null;
    const value = acts.value === null ? shareOf(acts.acts, block, latent) : short(acts.value);
    return sides.length > 1 ? data.content.clients[block.client] + " " + value : value;
  });
  const caption = make("figcaption");
  words.filter(Boolean).forEach((word) => caption.append(make("span", "", word)));
  caption.title = "input " + input + (sides[0][0].field ? ", position " + position : "");
  box.append(caption);
  return box;
}

// The whole input, and of a convolution the part that the position sees, framed and enlarged.
function drawn(sheet, place, field, position) {
  const { width, height } = sheet, x = (place % sheet.columns) * width, y = Math.floor(place / sheet.columns) * height;
  const wide = width > 1.6 * height, canvas = make("canvas", wide ? "line" : ""), pen = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  pen.drawImage(sheet.image, x, y, width, height, 0, 0, width, height);
  if (!field) return [canvas];
  const mark = make("div", "frame"), frame = make("div", "framed");
  frame.append(canvas, mark);
  if (field.length !== undefined) {
    mark.style.cssText = "left:" + (100 * position) / Math.max(1, field.length - 1) + "%;top:0;width:0;height:100%";
    return [frame];
  }
  const across = field.grid[1], at = [Math.floor(position / across), position % across];
  const low = at.map((k, d) => field.first[d] + k * field.step[d]), clip = (v, d) => Math.max(0, Math.min(field.size[d], v));
  const top = clip(low[0], 0), left = clip(low[1], 1), bottom = clip(low[0] + field.field[0], 0), right = clip(low[1] + field.field[1], 1);
  const share = (v, d) => (100 * v) / field.size[d] + "%";
  Object.assign(mark.style, { left: share(left, 1), top: share(top, 0), width: share(right - left, 1), height: share(bottom - top, 0) });
  if ((bottom - top) * (right - left) > 0.6 * field.size[0] * field.size[1]) return [frame];
  const patch = make("canvas", "patch"), scale = [height / field.size[0], width / field.size[1]];
  patch.width = Math.max(1, Math.round((right - left) * scale[1]));
  patch.height = Math.max(1, Math.round((bottom - top) * scale[0]));
  const from = [x + left * scale[1], y + top * scale[0], (right - left) * scale[1], (bottom - top) * scale[0]];
  patch.getContext("2d").drawImage(sheet.image, ...from, 0, 0, patch.width, patch.height);
  return [patch, frame];
}

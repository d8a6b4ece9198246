// Maps of both dictionaries, linked to the list, and the flow from one client's features to the other's.
const SHADES = { matched: "--matched", split: "--split", merged: "--merged", "own-a": "--own", "own-b": "--own", dead: "--line" };

function featureMaps(data, parts) {
  const box = make("div", "maps"), words = make("p", "small");
  words.setAttribute("aria-hidden", "true");
  let view = null, chosen = new Set(), selected = -1, panels = [];
  const shade = (name) => getComputedStyle(box).getPropertyValue(name).trim() || "#888";

  function panel(block, side) {
    const frame = make("figure", "map"), layers = make("div", "layers"), under = make("canvas"), over = make("canvas");
    const caption = make("figcaption", "", data.content.clients[block.client] + ": atoms of its " + data.content.nouns[block.client] + "s");
    under.setAttribute("role", "img");
    under.setAttribute("aria-label", "Map of the atoms of " + data.content.clients[block.client] + "; the list holds the same features.");
    layers.append(under, over);
    frame.append(layers, caption);
    const each = { block, side, frame, under, over, caption: caption.textContent };
    over.onmousemove = (event) => hover(each, nearest(each, event));
    over.onmouseleave = () => hover(each, -1);
    over.onclick = (event) => {
      const latent = nearest(each, event), items = itemsOf(view);
      if (latent >= 0) parts.choose((side ? items.byB : items.byA)[latent]);
    };
    return each;
  }

  function place(each, latent) {
    const size = each.under.clientWidth, pad = 8;
    return [pad + ((size - 2 * pad) * each.block.x[latent]) / 65535, pad + ((size - 2 * pad) * (65535 - each.block.y[latent])) / 65535];
  }
  function nearest(each, event) {
    const area = each.over.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
    let best = -1, least = 144;
    for (let j = 0; j < each.block.latents; j++) {
      if (!(each.block.density[j] > 0)) continue;
      const [px, py] = place(each, j), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) { best = j; least = distance; }
    }
    return best;
  }

  function prepare(canvas) {
    const size = canvas.clientWidth, ratio = globalThis.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = canvas.height = Math.round(size * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  function draw() {
    panels.forEach((each) => {
      const pen = prepare(each.under), items = itemsOf(view), latents = each.side ? items.b : items.a;
      const radius = each.block.latents > 4000 ? 1.1 : each.block.latents > 800 ? 1.8 : 2.6;
      const shades = {}, faint = shade("--faint");
      Object.keys(SHADES).forEach((name) => { shades[name] = shade(SHADES[name]); });
      for (const lit of [false, true]) {
        for (let i = 0; i < items.count; i++) {
          const latent = latents[i];
          if (latent < 0 || !(each.block.density[latent] > 0) || chosen.has(i) !== lit) continue;
          const [x, y] = place(each, latent);
          pen.fillStyle = lit ? shades[groupOf(items, i)] : faint;
          pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
        }
      }
    });
    mark(-1, null);
  }

  function mark(hovered, from) {
    const items = view ? itemsOf(view) : null;
    panels.forEach((each) => {
      const pen = prepare(each.over);
      [[selected, 7, 2.5], [hovered, 5, 1.5]].forEach(([i, radius, width]) => {
        const latent = i >= 0 ? (each.side ? items.b : items.a)[i] : -1;
        if (latent < 0) return;
        const [x, y] = place(each, latent);
        pen.beginPath();
        pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.lineWidth = width;
        pen.strokeStyle = shade("--ink");
        pen.stroke();
      });
    });
    words.textContent = hovered >= 0 && from ? hint(hovered) : "Point at a dot to see what it is and where its partner lies; click to open it.";
  }
  function hint(i) {
    const items = itemsOf(view), block = items.a[i] >= 0 ? view.a : view.b;
    return titleOf(data, view, i) + ": " + (labelOf(data, block, items.a[i] >= 0 ? items.a[i] : items.b[i]) || "no words");
  }
  function hover(each, latent) {
    const items = itemsOf(view);
    mark(latent < 0 ? -1 : (each.side ? items.byB : items.byA)[latent], each);
    each.over.style.cursor = latent < 0 ? "default" : "pointer";
  }

  function open(next) {
    view = next;
    panels = [view.a, view.b].filter(Boolean).map((block, side) => panel(block, side));
    box.replaceChildren(...panels.map((each) => each.frame), words);
  }
  new ResizeObserver(() => view && draw()).observe(box);
  if (globalThis.matchMedia) matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view && draw());
  return {
    box, open,
    show(items) { chosen = new Set(items); draw(); },
    select(i) { selected = i; mark(-1, null); },
  };
}

// What became of the features of both clients: bars of each, and a band for every kind of pair.
function featureFlow(data, view, only) {
  const items = itemsOf(view), { clients } = data.content, width = 340, height = 190, bar = 14, left = 92, right = width - 92;
  const kinds = [["matched", 0], ["split", 1], ["merged", 2], ["own", 3], ["dead", 4]];
  const count = (list, kind) => list.reduce((sum, each) => sum + (each === kind), 0);
  const image = drawing("svg", { viewBox: "0 0 " + width + " " + height, class: "flow", role: "group" });
  image.setAttribute("aria-label", "Flow of features from " + clients[view.a.client] + " to " + clients[view.b.client]);
  const sides = [[items.kindA, view.a, left - bar, "end"], [items.kindB, view.b, right, "start"]].map(([list, block, x, anchor]) => {
    const total = Math.max(1, block.latents), gap = 3, found = {};
    let y = 22;
    const present = kinds.filter(([, kind]) => count(list, kind));
    const room = height - y - gap * (present.length - 1);
    image.append(drawing("text", { x: x + bar / 2, y: 12, "text-anchor": "middle", class: "title" }, clients[block.client]));
    present.forEach(([name, kind]) => {
      const n = count(list, kind), tall = Math.max(1.5, (room * n) / total), group = drawing("g", { class: "segment " + name, tabindex: 0, role: "button" });
      const key = kind === OWN ? (block === view.a ? "own-a" : "own-b") : kind === DEAD ? "dead" : name;
      group.setAttribute("aria-label", clients[block.client] + ": " + whole(n) + " " + name + "; show only these");
      group.append(drawing("rect", { x, y, width: bar, height: tall }));
      const label = drawing("text", { x: anchor === "end" ? x - 6 : x + bar + 6, y: y + tall / 2 + 4, "text-anchor": anchor }, name + " " + whole(n));
      found[name] = [y, tall, label];
      group.append(label);
      group.addEventListener("click", () => only(key));
      group.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.stopPropagation(); only(key); } });
      image.append(group);
      y += tall + gap;
    });
    apart(Object.values(found).map(([, , label]) => label), height);
    return found;
  });
  ["matched", "split", "merged"].forEach((name) => {
    const [a, b] = sides.map((each) => each[name]);
    if (!a || !b) return;
    const middle = (left + right) / 2;
    const path = "M" + left + "," + a[0] + " C" + middle + "," + a[0] + " " + middle + "," + b[0] + " " + right + "," + b[0] +
      " V" + (b[0] + b[1]) + " C" + middle + "," + (b[0] + b[1]) + " " + middle + "," + (a[0] + a[1]) + " " + left + "," + (a[0] + a[1]) + " Z";
    image.prepend(drawing("path", { d: path, class: "band " + name }));
  });
  const frame = make("figure", "flowing");
  frame.append(image, make("figcaption", "", "Features of each client by what became of them; click to see only these. Split: one in " +
    clients[view.a.client] + " is several in " + clients[view.b.client] + "; merged: the reverse."));
  return frame;
}
// Labels at least a line apart, inside the picture.
function apart(labels, height) {
  let last = 12;
  labels.forEach((label) => {
    const y = Math.max(Number(label.getAttribute("y")), last + 13);
    label.setAttribute("y", y);
    last = y;
  });
  for (let k = labels.length - 1, bottom = height - 2; k >= 0; k--, bottom -= 13) {
    if (Number(labels[k].getAttribute("y")) > bottom) labels[k].setAttribute("y", bottom);
  }
}

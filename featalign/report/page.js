// Aligned-feature browser: pick a space, click a matched pair or an unmatched latent, see what drives it in each client.
(function () {
  const block = document.getElementById("browser-data");
  const root = document.getElementById("browser");
  if (!block || !root) return;
  const data = JSON.parse(block.textContent);
  const sheet = data.sheet;
  const image = new Image();
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const state = { space: Object.keys(data.spaces)[0], kind: "pairs", index: 0 };

  function thumbnail(index, value) {
    const entry = data.inputs[index];
    const box = make("div", "thumb");
    const canvas = make("canvas");
    canvas.width = sheet.width; canvas.height = sheet.height;
    const x = (entry.place % sheet.columns) * sheet.width, y = Math.floor(entry.place / sheet.columns) * sheet.height;
    canvas.getContext("2d").drawImage(image, x, y, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
    box.append(canvas, make("span", "", data.classes[entry.label] + " · " + value.toFixed(2)));
    box.title = "input " + index + ", label " + data.classes[entry.label] + ", activation " + value.toFixed(3);
    return box;
  }

  function card(client, latent) {
    const box = make("div", "card");
    box.append(make("h3", "", "client " + client + ", latent " + latent.latent));
    box.append(make("div", "facts", "fires on " + (100 * latent.density).toFixed(1) + " % of inputs; strongest on:"));
    const thumbs = make("div", "thumbs");
    latent.inputs.forEach((index, i) => thumbs.append(thumbnail(index, latent.values[i])));
    if (!latent.inputs.length) thumbs.append(make("span", "facts", "no input of this sample activates it"));
    box.append(thumbs, make("div", "facts", "mean activation by class, as a share:"));
    const profile = make("div", "profile");
    const highest = Math.max(...latent.profile, 1e-9);
    latent.profile.forEach((share, c) => {
      const column = make("div"), bar = make("i");
      bar.style.height = (70 * share / highest) + "px";
      column.title = data.classes[c] + ": " + (100 * share).toFixed(1) + " %";
      column.append(bar, make("span", "", data.classes[c]));
      profile.append(column);
    });
    box.append(profile);
    return box;
  }

  const argmax = (values) => values.indexOf(Math.max(...values));
  function entries() {
    const space = data.spaces[state.space];
    return state.kind === "pairs" ? space.pairs : space.unmatched[state.kind === "onlyA" ? 0 : 1];
  }

  function draw() {
    root.replaceChildren();
    const spaces = make("div", "tabs");
    Object.keys(data.spaces).forEach((name) => {
      const button = make("button", name === state.space ? "on" : "", "space " + name);
      button.onclick = () => { state.space = name; state.index = 0; draw(); };
      spaces.append(button);
    });
    const kinds = make("div", "tabs");
    const counts = data.spaces[state.space];
    [["pairs", "matched pairs (" + counts.pairs.length + ")"],
     ["onlyA", "only in " + data.names[0] + " (" + counts.unmatched[0].length + ")"],
     ["onlyB", "only in " + data.names[1] + " (" + counts.unmatched[1].length + ")"]].forEach(([kind, label]) => {
      const button = make("button", kind === state.kind ? "on" : "", label);
      button.dataset.kind = kind;
      button.onclick = () => { state.kind = kind; state.index = 0; draw(); };
      kinds.append(button);
    });
    const body = make("div", "browser"), list = make("div", "list"), detail = make("div", "detail");
    const items = entries();
    items.forEach((entry, i) => {
      const button = make("button", i === state.index ? "on" : "");
      const shown = state.kind === "pairs" ? entry.a : entry;
      const score = state.kind === "pairs" ? entry.score : entry.best;
      const name = state.kind === "pairs" ? "A " + entry.a.latent + " ↔ B " + entry.b.latent : "latent " + entry.latent;
      const label = name.replace("A ", data.names[0] + " ").replace("B ", data.names[1] + " ");
      button.append(make("span", "", label + " · mostly " + data.classes[argmax(shown.profile)]));
      button.append(make("span", "facts", score.toFixed(2)));
      const bar = make("span", "bar");
      bar.style.width = (100 * Math.max(0, score)) + "%";
      button.append(bar);
      button.onclick = () => {
        state.index = i;
        list.querySelectorAll("button").forEach((other, j) => other.classList.toggle("on", j === i));
        show(detail, items[i]);
      };
      list.append(button);
    });
    body.append(list, detail);
    root.append(spaces, kinds, body);
    if (items.length) show(detail, items[state.index]);
    else detail.append(make("p", "note", "None: every alive latent of this client found a partner."));
  }

  function show(detail, entry) {
    detail.replaceChildren();
    if (state.kind === "pairs") {
      detail.append(make("p", "facts", "match score (correlation of codes) " + entry.score.toFixed(3) +
        "; next best partner " + entry.next_best.toFixed(3) + "; gain from A's to B's scale " + entry.gain.toFixed(2)));
      const cards = make("div", "cards");
      cards.append(card(data.names[0], entry.a), card(data.names[1], entry.b));
      detail.append(cards);
    } else {
      const which = state.kind === "onlyA" ? 0 : 1;
      detail.append(make("p", "facts", "no partner above the null's threshold; best correlation with any latent of " +
        data.names[1 - which] + ": " + entry.best.toFixed(3)));
      detail.append(card(data.names[which], entry));
    }
  }
  image.onload = draw;
  image.onerror = draw;
  image.src = sheet.png ? "data:image/png;base64," + sheet.png : "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
})();

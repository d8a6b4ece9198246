// What every page runs: figures from their data blocks, and the widgets that a page asks for by name.
// Text from data reaches the page through textContent alone.
(function () {
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const fixed = (value, digits) => Number(value).toFixed(digits);
  const percent = (value, digits) => fixed(100 * value, digits) + " %";
  const size = (value) => Math.max(0, Math.min(100, Number(value) || 0));
  const argmax = (values) => values.indexOf(Math.max(...values));

  function tabs(entries, chosen, choose, attribute) {
    const box = make("div", "tabs");
    entries.forEach(([key, label]) => {
      const button = make("button", key === chosen ? "on" : "", label);
      if (attribute) button.dataset[attribute] = key;
      button.onclick = () => choose(key);
      box.append(button);
    });
    return box;
  }

  // An input, as text or from the sprite sheet, with a caption.
  function thumb(data, index, caption) {
    if (data.inputs[index].text !== undefined) {
      const snippet = make("div", "snippet");
      snippet.append(make("code", "", data.inputs[index].text), make("span", "", caption));
      return snippet;
    }
    const box = make("div", "thumb"), canvas = make("canvas"), sheet = data.sheet;
    const place = data.inputs[index].place;
    canvas.width = sheet.width;
    canvas.height = sheet.height;
    const x = (place % sheet.columns) * sheet.width, y = Math.floor(place / sheet.columns) * sheet.height;
    canvas.getContext("2d").drawImage(data.image, x, y, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
    box.append(canvas, make("span", "", caption));
    return box;
  }

  // A bar for every class, negative ones in the colour of the neuron basis.
  function bars(values, classes, title) {
    const box = make("div", "profile"), top = Math.max(...values.map(Math.abs), 1e-9);
    values.forEach((value, c) => {
      const column = make("div"), bar = make("i"), name = classes[c] ?? c;
      bar.style.height = Math.round(64 * Math.abs(value) / top) + "px";
      if (value < 0) bar.style.background = "var(--neuron)";
      column.title = name + ": " + title(value);
      column.append(bar, make("span", "", name));
      box.append(column);
    });
    return box;
  }

  // A button of a list: label, figure, and a bar of its size in per cent.
  function row(label, value, share, on) {
    const button = make("button", on ? "on" : ""), bar = make("span", "bar");
    bar.style.width = size(share) + "%";
    button.append(make("span", "", label), make("span", "facts", value), bar);
    return button;
  }

  // Aligned-feature browser: pick a space, click a matched pair or an unmatched latent, see what drives it in each client.
  function alignedFeatures(root, data) {
    const state = { space: Object.keys(data.spaces)[0], kind: "pairs", index: 0 };
    const entries = () => {
      const space = data.spaces[state.space];
      return state.kind === "pairs" ? space.pairs : space.unmatched[state.kind === "onlyA" ? 0 : 1];
    };

    function card(client, latent) {
      const box = make("div", "card"), thumbs = make("div", "thumbs");
      box.append(make("h3", "", "client " + client + ", latent " + latent.latent));
      box.append(make("div", "facts", "fires on " + percent(latent.density, 1) + " of inputs; strongest on:"));
      latent.inputs.forEach((index, i) => {
        const name = data.classes[data.inputs[index].label], value = latent.values[i];
        const shown = thumb(data, index, (name === undefined ? "" : name + " · ") + fixed(value, 2));
        const label = name === undefined ? "" : ", label " + name;
        shown.title = "input " + index + label + ", activation " + fixed(value, 3);
        thumbs.append(shown);
      });
      if (!latent.inputs.length) thumbs.append(make("span", "facts", "no input of this sample activates it"));
      box.append(thumbs);
      if (!latent.profile.length) return box;
      box.append(make("div", "facts", "mean activation by class, as a share:"));
      box.append(bars(latent.profile, data.classes, (share) => percent(share, 1)));
      return box;
    }

    function label(entry) {
      const shown = state.kind === "pairs" ? entry.a : entry;
      const name = state.kind === "pairs"
        ? data.names[0] + " " + entry.a.latent + " ↔ " + data.names[1] + " " + entry.b.latent
        : "latent " + entry.latent;
      return name + (shown.profile.length ? " · mostly " + data.classes[argmax(shown.profile)] : "");
    }

    function show(detail, entry) {
      detail.replaceChildren();
      if (state.kind === "pairs") {
        detail.append(make("p", "facts", "match score (correlation of codes) " + fixed(entry.score, 3) +
          "; next best partner " + fixed(entry.next_best, 3) + "; gain from A's to B's scale " + fixed(entry.gain, 2)));
        const cards = make("div", "cards");
        cards.append(card(data.names[0], entry.a), card(data.names[1], entry.b));
        detail.append(cards);
        return;
      }
      const which = state.kind === "onlyA" ? 0 : 1;
      detail.append(make("p", "facts", "no partner above the null's threshold; best correlation with any latent of " +
        data.names[1 - which] + ": " + fixed(entry.best, 3)));
      detail.append(card(data.names[which], entry));
    }

    function draw() {
      root.replaceChildren();
      const counts = data.spaces[state.space], items = entries();
      const kinds = [
        ["pairs", "matched pairs (" + counts.pairs.length + ")"],
        ["onlyA", "only in " + data.names[0] + " (" + counts.unmatched[0].length + ")"],
        ["onlyB", "only in " + data.names[1] + " (" + counts.unmatched[1].length + ")"],
      ];
      root.append(tabs(Object.keys(data.spaces).map((name) => [name, "space " + name]), state.space,
        (name) => { state.space = name; state.index = 0; draw(); }));
      root.append(tabs(kinds, state.kind, (kind) => { state.kind = kind; state.index = 0; draw(); }, "kind"));
      const body = make("div", "browser"), list = make("div", "list"), detail = make("div", "detail");
      items.forEach((entry, i) => {
        const score = state.kind === "pairs" ? entry.score : entry.best;
        const button = row(label(entry), fixed(score, 2), 100 * score, i === state.index);
        button.onclick = () => {
          state.index = i;
          list.querySelectorAll("button").forEach((other, j) => other.classList.toggle("on", j === i));
          show(detail, items[i]);
        };
        list.append(button);
      });
      body.append(list, detail);
      root.append(body);
      if (items.length) show(detail, items[state.index]);
      else detail.append(make("p", "note", "None: every alive latent of this client found a partner."));
    }
    draw();
  }

  // Units and the features they carry, linked to each other.
  function unitsAndFeatures(root, data) {
    const state = { space: Object.keys(data.spaces)[0], kind: "units", id: null };
    const named = (kind, id) => (kind === "units" ? "unit " : "feature ") + id;

    function thumbs(indices) {
      const box = make("div", "thumbs");
      const known = indices.filter((index) => data.inputs[index]);
      known.forEach((index) => box.append(thumb(data, index, data.classes[data.inputs[index].label] ?? "")));
      if (!known.length) box.append(make("span", "facts", "no input that the cards look through activates it"));
      return box;
    }

    function links(kind, pairs) {
      const box = make("div", "tabs");
      pairs.forEach(([id, share]) => {
        const known = data.spaces[state.space][kind].some((card) => card.id === id);
        const button = make("button", "", named(kind, id) + " · " + percent(share, 0));
        button.dataset.link = kind + "-" + id;
        if (known) button.onclick = () => { state.kind = kind; state.id = id; draw(); };
        else { button.disabled = true; button.title = "not among the cards of this page"; }
        box.append(button);
      });
      return box;
    }

    function card(kind, entry) {
      const box = make("div", "card"), says = (text) => make("p", "facts", text);
      const profile = (values) => bars(values, data.classes, (value) => fixed(value, 3));
      box.id = "card";
      box.append(make("h3", "", (kind === "units" ? "Unit " : "Feature ") + entry.id));
      if (kind === "units") {
        const kinds = entry.kinds === null ? "" : "; " + entry.kinds + " kinds of inputs drive it";
        box.append(says(entry.effective + " effective features" + kinds + "; shares of its variance:"),
          links("features", entry.features));
        box.append(says("inputs that drive it most"), thumbs(entry.inputs));
        if (entry.profile.length) box.append(says("class profile"), profile(entry.profile));
        return box;
      }
      const again = entry.again === null ? "" : ", cosine with its partner of another seed " + entry.again;
      box.append(says("fires on " + percent(entry.density, 1) + " of samples" + again +
        "; units it lives on, by share of the unit's variance:"), links("units", entry.units));
      box.append(says("inputs that drive it most"), thumbs(entry.inputs));
      box.append(says("at the upper quartile, the median, the lower quartile and the weakest firing"), thumbs(entry.spread));
      if (entry.profile.length) box.append(says("class profile"), profile(entry.profile));
      if (entry.effect.length) box.append(says("class effect: outputs it raises, and lowers in red"), profile(entry.effect));
      entry.partners.forEach((p) =>
        box.append(says("partner in " + p.who + ": latent " + p.latent + ", correlation " + p.score +
          (p.tie === undefined ? "" : " (a tie with latent " + p.tie + ")"))));
      return box;
    }

    function draw() {
      root.replaceChildren();
      root.append(tabs(Object.keys(data.spaces).map((name) => [name, name]), state.space,
        (name) => { state.space = name; state.id = null; draw(); }));
      root.append(tabs([["units", "units"], ["features", "features"]], state.kind,
        (kind) => { state.kind = kind; state.id = null; draw(); }, "kind"));
      const cards = data.spaces[state.space][state.kind];
      root.append(make("p", "note", data.spaces[state.space].facts));
      if (!cards.length) {
        return;
      }
      if (state.id === null) state.id = cards[0].id;
      const layout = make("div", "browser"), list = make("div", "list");
      const value = (entry) => (state.kind === "units" ? entry.effective : entry.density);
      const top = Math.max(...cards.map(value));
      let chosen = null;
      cards.forEach((entry) => {
        const figure = state.kind === "units" ? fixed(value(entry), 1) : percent(value(entry), 1);
        const button = row(named(state.kind, entry.id), figure, 100 * value(entry) / top, entry.id === state.id);
        button.onclick = () => { state.id = entry.id; draw(); };
        if (entry.id === state.id) chosen = [entry, button];
        list.append(button);
      });
      layout.append(list);
      if (chosen) layout.append(card(state.kind, chosen[0]));
      root.append(layout);
      if (chosen) list.scrollTop = chosen[1].offsetTop - list.offsetTop - 100;
    }
    draw();
  }

  const widgets = { "aligned-features": alignedFeatures, "units-and-features": unitsAndFeatures };
  const content = (element) => JSON.parse(element.nextElementSibling.textContent);

  document.querySelectorAll("[data-widget]").forEach((root) => {
    const data = content(root), start = () => widgets[root.dataset.widget](root, data);
    data.image = new Image();
    data.image.onload = start;
    data.image.onerror = start;
    const png = data.sheet && data.sheet.png;
    data.image.src = png ? "data:image/png;base64," + png : "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
  });
  document.querySelectorAll("[data-figure]").forEach((root) => {
    const figure = content(root);
    Plotly.newPlot(root, figure.data, figure.layout, { displaylogo: false, responsive: true });
  });
})();

(function () {
  const root = document.getElementById("diagnosis");
  const data = JSON.parse(document.getElementById("diagnosis-data").textContent);
  const sheet = new Image();
  const state = { space: Object.keys(data.spaces)[0], kind: "units", id: null };
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  function thumbs(indices) {
    const box = make("div", "thumbs");
    indices.forEach((index) => {
      const entry = data.inputs[index], holder = make("div", "thumb"), canvas = make("canvas");
      const s = data.sheet;
      canvas.width = s.width; canvas.height = s.height;
      const x = (entry.place % s.columns) * s.width, y = Math.floor(entry.place / s.columns) * s.height;
      canvas.getContext("2d").drawImage(sheet, x, y, s.width, s.height, 0, 0, s.width, s.height);
      holder.append(canvas, make("span", "", data.classes[entry.label] || ""));
      box.append(holder);
    });
    return box;
  }
  function bars(values) {
    const box = make("div", "profile"), top = Math.max(...values.map(Math.abs), 1e-9);
    values.forEach((value, c) => {
      const column = make("div"), bar = make("i");
      bar.style.height = Math.round(64 * Math.abs(value) / top) + "px";
      if (value < 0) bar.style.background = "var(--neuron)";
      column.title = value.toFixed(3);
      column.append(bar, make("span", "", data.classes[c] || c));
      box.append(column);
    });
    return box;
  }
  function links(kind, pairs) {
    const box = make("div", "tabs");
    pairs.forEach(([id, share]) => {
      const known = data.spaces[state.space][kind].some((card) => card.id === id);
      const button = make("button", "", (kind === "units" ? "unit " : "feature ") + id + " · " + Math.round(100 * share) + " %");
      button.dataset.link = kind + "-" + id;
      if (known) button.onclick = () => { state.kind = kind; state.id = id; draw(); };
      else { button.disabled = true; button.title = "not among the cards of this page"; }
      box.append(button);
    });
    return box;
  }
  function card(kind, entry) {
    const box = make("div", "card");
    box.id = "card";
    box.append(make("h3", "", (kind === "units" ? "Unit " : "Feature ") + entry.id));
    if (kind === "units") {
      box.append(make("p", "facts", entry.effective + " effective features; shares of its variance:"), links("features", entry.features));
      box.append(make("p", "facts", "inputs that drive it most"), thumbs(entry.inputs));
      if (entry.profile.length) box.append(make("p", "facts", "class profile"), bars(entry.profile));
      return box;
    }
    box.append(make("p", "facts", "fires on " + (100 * entry.density).toFixed(1) + " % of inputs; units it lives on, by share of the unit's variance:"), links("units", entry.units));
    box.append(make("p", "facts", "inputs that drive it most"), thumbs(entry.inputs));
    box.append(make("p", "facts", "at the upper quartile, the median, the lower quartile and the weakest firing"), thumbs(entry.spread));
    if (entry.profile.length) box.append(make("p", "facts", "class profile"), bars(entry.profile));
    if (entry.effect.length) box.append(make("p", "facts", "class effect: outputs it raises, and lowers in red"), bars(entry.effect));
    entry.partners.forEach((p) => box.append(make("p", "facts", "partner in " + p.who + ": latent " + p.latent + ", correlation " + p.score)));
    return box;
  }
  function draw() {
    root.replaceChildren();
    const tabs = make("div", "tabs"), kinds = make("div", "tabs");
    Object.keys(data.spaces).forEach((name) => {
      const button = make("button", name === state.space ? "on" : "", name);
      button.onclick = () => { state.space = name; state.id = null; draw(); };
      tabs.append(button);
    });
    ["units", "features"].forEach((kind) => {
      const button = make("button", kind === state.kind ? "on" : "", kind);
      button.dataset.kind = kind;
      button.onclick = () => { state.kind = kind; state.id = null; draw(); };
      kinds.append(button);
    });
    const cards = data.spaces[state.space][state.kind];
    root.append(tabs, kinds);
    if (!cards.length) { root.append(make("p", "note", "No cards: activations of this layer are not one row per input.")); return; }
    if (state.id === null) state.id = cards[0].id;
    const layout = make("div", "browser"), list = make("div", "list");
    const top = Math.max(...cards.map((c) => (state.kind === "units" ? c.effective : c.density)));
    let chosen = null;
    cards.forEach((entry) => {
      const value = state.kind === "units" ? entry.effective : entry.density;
      const button = make("button", entry.id === state.id ? "on" : ""), bar = make("span", "bar");
      button.append(make("span", "", (state.kind === "units" ? "unit " : "feature ") + entry.id));
      button.append(make("span", "", state.kind === "units" ? value.toFixed(1) : (100 * value).toFixed(1) + " %"));
      bar.style.width = (100 * value / top) + "%";
      button.append(bar);
      button.onclick = () => { state.id = entry.id; draw(); };
      if (entry.id === state.id) chosen = [entry, button];
      list.append(button);
    });
    layout.append(list);
    if (chosen) layout.append(card(state.kind, chosen[0]));
    root.append(layout);
    if (chosen) list.scrollTop = chosen[1].offsetTop - list.offsetTop - 100;
  }
  sheet.onload = draw;
  sheet.onerror = draw;
  sheet.src = "data:image/png;base64," + data.sheet.png;
})();

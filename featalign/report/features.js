// The feature browser: views, filters, maps and flow above, the list on the left, the card of what is chosen.
function featureBrowser(root, content) {
  root.classList.add("features");
  let data, views;
  try {
    data = featureData(content);
    views = viewsOf(data);
    if (!views.length) throw new Error("no features");
    views.forEach(itemsOf);
  } catch (error) {
    root.replaceChildren(make("p", "note", "The data of this browser cannot be read (" + error.message + ")."));
    return;
  }
  const state = { view: views[0], query: "", hidden: new Set(["dead"]), sort: "score", selected: -1, serial: 0,
    scoreFrom: null, scoreTo: null, densityFrom: null, densityTo: null };
  const tools = make("div", "tools"), overview = make("div", "overview"), status = make("p", "status"), detail = make("div", "detail");
  const body = make("div", "browser"), flow = make("div"), kinds = make("div", "kinds");
  status.setAttribute("role", "status");
  status.setAttribute("aria-live", "polite");
  detail.setAttribute("aria-live", "off");
  const list = virtualList({ label: "Features", row: rowOf, choose: (i) => open(i) });
  const maps = featureMaps(data, { choose: (i) => { reveal(i); } });

  function rowOf(i) {
    const { view } = state, items = itemsOf(view), row = make("div", "row"), group = groupOf(items, i);
    const block = items.a[i] >= 0 ? view.a : view.b, latent = items.a[i] >= 0 ? items.a[i] : items.b[i];
    const shown = measureOf(view, state.sort === "latent" || state.sort === "kind" ? "score" : state.sort, i);
    const value = state.sort === "density" ? percent(shown) : state.sort === "energy" || state.sort === "max" ? short(shown) : two(shown);
    const bar = make("i", "bar " + group);
    bar.style.width = 100 * Math.max(0, Math.min(1, measureOf(view, "score", i) || 0)) + "%";
    const label = make("span", "words", labelOf(data, block, latent));
    row.append(make("span", "name", titleOf(data, view, i)), make("span", "figure", value), label, make("span", "chip " + group, kindWord(group)), bar);
    return row;
  }
  function kindWord(group) {
    const found = groupsOf(state.view, data).find(([key]) => key === group);
    return found ? found[1] : group;
  }

  async function open(i) {
    state.selected = i;
    const serial = ++state.serial;
    maps.select(i);
    tell();
    try {
      const card = await featureCard(data, state.view, i, go);
      if (serial !== state.serial) return;
      detail.replaceChildren(card);
    } catch (error) {
      if (serial === state.serial) detail.replaceChildren(make("p", "note", "This card cannot be read (" + error.message + ")."));
    }
  }
  function reveal(i) {
    if (i < 0 || i === undefined) return;
    const place = list.state.shown.indexOf(i);
    if (place >= 0) return list.choose(place);
    const group = groupOf(itemsOf(state.view), i);
    clear(false);
    state.hidden.delete(group);
    renew();
    list.choose(list.state.shown.indexOf(i));
  }
  // Another feature, in this view where it is in it, else in one that has its client (of that table, where it is given).
  function go(client, latent, table) {
    const has = (view) => view.site === state.view.site && [view.a, view.b].some((block) => block && block.client === client);
    const next = (table && views.find((view) => view.table === table)) || (has(state.view) ? state.view : views.find(has));
    if (!next) return;
    if (next !== state.view) turn(next);
    const items = itemsOf(next);
    reveal((next.a.client === client ? items.byA : items.byB)[latent]);
  }

  function tell() {
    const items = itemsOf(state.view), shown = list.state.shown.length;
    const chosen = state.selected >= 0 ? "; open: " + titleOf(data, state.view, state.selected) : "";
    status.textContent = whole(shown) + " of " + whole(items.count) + " shown" + chosen;
  }
  function refresh() {
    const shown = chosenItems(data, state.view, state);
    list.show(shown, state.selected);
    maps.show(shown);
    if (!shown.includes(state.selected)) {
      state.selected = -1;
      if (shown.length) list.choose(0);
      else {
        state.serial++;
        detail.replaceChildren(make("p", "note", "No feature passes these filters. Esc clears them."));
      }
    }
    tell();
  }
  function renew() {
    kinds.replaceChildren(...groupsOf(state.view, data).map(([key, text, count]) => {
      const button = make("button", "toggle " + key);
      button.type = "button";
      button.dataset.kind = key;
      button.setAttribute("aria-pressed", !state.hidden.has(key));
      button.append(make("span", "", text), make("b", "", whole(count)));
      button.onclick = () => {
        if (state.hidden.has(key)) state.hidden.delete(key); else state.hidden.add(key);
        renew();
      };
      return button;
    }));
    refresh();
  }
  function only(key) {
    const all = groupsOf(state.view, data).map(([name]) => name);
    const alone = all.every((name) => (name === key) !== state.hidden.has(name));
    state.hidden = new Set(alone ? ["dead"] : all.filter((name) => name !== key));
    renew();
  }
  function turn(view) {
    state.view = view;
    state.selected = -1;
    state.hidden = new Set(groupsOf(view, data).length > 1 ? ["dead"] : []);
    maps.open(view);
    flow.replaceChildren(...(view.b ? [featureFlow(data, view, only)] : []));
    controls();
    renew();
  }
  function clear(draw = true) {
    Object.assign(state, { query: "", scoreFrom: null, scoreTo: null, densityFrom: null, densityTo: null });
    state.hidden = new Set(["dead"]);
    controls();
    if (draw) renew();
  }

  function controls() {
    const search = make("input", "search"), more = (name) => {
      const input = make("input");
      input.type = "number";
      input.step = "any";
      if (state[name] !== null) input.value = state[name];
      input.oninput = () => { state[name] = input.value === "" ? null : Number(input.value); refresh(); };
      return input;
    };
    search.type = "search";
    search.placeholder = "word, class or number";
    search.value = state.query;
    search.oninput = () => { state.query = search.value; refresh(); };
    search.onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); list.box.focus(); list.choose(0); } };
    const range = (text, name) => {
      const box = make("fieldset", "range"), low = more(name + "From"), high = more(name + "To");
      low.setAttribute("aria-label", text + " from");
      high.setAttribute("aria-label", text + " to");
      box.append(make("legend", "", text), low, make("span", "", "to"), high);
      return box;
    };
    const places = [...new Set(views.map((view) => view.site))];
    const here = views.filter((view) => view.site === state.view.site), picks = [];
    if (places.length > 1) picks.push(labelled("layer", choice(places.map((s) => [String(s), content.sites[s]]), String(state.view.site),
      (s) => turn(views.find((view) => view.site === Number(s)))), "site"));
    if (here.length > 1) picks.push(labelled("show", choice(here.map((view, k) => [String(k), view.name]),
      String(here.indexOf(state.view)), (k) => turn(here[Number(k)])), "view"));
    const sort = choice(SORTS, state.sort, (name) => { state.sort = name; refresh(); });
    tools.replaceChildren(...picks, labelled("search", search, "wide"), labelled("sort by", sort), range("score", "score"),
      range("active on, %", "density"));
  }

  root.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") { clear(); list.box.focus(); }
    if (event.key === "/" && !typing) { event.preventDefault(); tools.querySelector(".search").focus(); }
    if (event.key === "Enter" && event.target === list.box) { detail.tabIndex = -1; detail.focus(); }
  });
  const keys = make("p", "keys");
  [["/", "search"], ["↑ ↓", "move in the list"], ["Enter", "from the search to the list, from the list to the card"], ["Esc", "clear filters"]]
    .forEach(([key, text]) => keys.append(make("kbd", "", key), " " + text + "  "));
  overview.append(maps.box, flow);
  body.append(list.box, detail);
  root.replaceChildren(tools, kinds, overview, status, body, keys);
  turn(state.view);
}

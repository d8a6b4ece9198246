// A list of any length of which only the rows in sight are in the page.
const ROW = 46, AROUND = 4;

function virtualList(parts) {
  const box = make("div", "list"), inner = make("div", "rows");
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", parts.label);
  box.append(inner);
  const state = { shown: [], at: -1, first: -1, last: -1 };
  const identifier = "row-" + Math.random().toString(36).slice(2);

  function draw(force) {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - AROUND);
    const last = Math.min(state.shown.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + AROUND);
    if (!force && first === state.first && last === state.last) return;
    Object.assign(state, { first, last });
    inner.style.height = state.shown.length * ROW + "px";
    inner.replaceChildren();
    for (let place = first; place < last; place++) {
      const row = parts.row(state.shown[place]);
      row.id = identifier + "-" + place;
      row.style.top = place * ROW + "px";
      row.setAttribute("role", "option");
      row.setAttribute("aria-setsize", state.shown.length);
      row.setAttribute("aria-posinset", place + 1);
      row.setAttribute("aria-selected", place === state.at);
      row.classList.toggle("on", place === state.at);
      row.onclick = () => choose(place);
      inner.append(row);
    }
    if (state.at >= first && state.at < last) box.setAttribute("aria-activedescendant", identifier + "-" + state.at);
    else box.removeAttribute("aria-activedescendant");
  }

  function reveal() {
    const top = state.at * ROW, bottom = top + ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
  }

  function choose(place) {
    if (!state.shown.length) return;
    state.at = Math.max(0, Math.min(state.shown.length - 1, place));
    reveal();
    draw(true);
    parts.choose(state.shown[state.at]);
  }

  function show(items, selected) {
    state.shown = items;
    state.at = items.indexOf(selected);
    inner.style.height = items.length * ROW + "px";
    if (state.at >= 0) {
      box.scrollTop = Math.max(0, state.at * ROW - box.clientHeight / 2);
    } else {
      box.scrollTop = 0;
    }
    draw(true);
  }

  box.addEventListener("scroll", () => draw(false), { passive: true });
  box.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    choose(state.at + steps[event.key]);
  });
  new ResizeObserver(() => draw(true)).observe(box);
  return { box, show, choose, state };
}

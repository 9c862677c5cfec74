"use strict";
// Pages through the whole store: filters, thumbnails, and figures that follow a run that goes on.
const live = (() => {
  const { page, find, element, show, state, percent, keys, miniature } = maskmill;
  const thumbs = find("thumbs"), filters = find("filters");
  let offset = 0, rows = [], total = 0, version = page.version;
  const ask = async (path) => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) {
      seen.unobserve(target);
      ask(`api/pictures/${target.dataset.image}?side=240`).then((answer) => answer.json()).then((picture) => miniature(picture, target)).catch(() => {});
    }
  }, { rootMargin: "200px" });
  async function select(at, focus = false) {
    const id = rows[at]?.id;
    if (!id || (maskmill.mayLeave && !maskmill.mayLeave())) return;
    thumbs.querySelectorAll("button").forEach((button, index) => {
      button.setAttribute("aria-current", index === at);
      if (index === at && focus) button.scrollIntoView({ block: "nearest" });
    });
    state.number = at;
    const picture = await (await ask(`api/pictures/${id}`)).json();
    if (state.number === at) await show(picture);
  }
  async function list(first = 0) {
    const query = new URLSearchParams(new FormData(filters));
    query.set("offset", offset);
    ({ images: rows, total } = await (await ask(`api/images?${query}`)).json());
    find("range").textContent = total ? `${(offset + 1).toLocaleString()} to ${(offset + rows.length).toLocaleString()} of ${total.toLocaleString()}` : "no image like this";
    find("back").disabled = offset === 0; find("forward").disabled = offset + rows.length >= total;
    thumbs.replaceChildren(...rows.map((row, at) => {
      const button = element("button", "", null, { type: "button", "aria-label": row.name });
      const canvas = element("canvas", "", button, { width: 240, height: 180, "data-image": row.id }), caption = element("span", "", button);
      element("b", row.name, caption); element("i", (row.review ? "✓ " : "") + percent(row.kept), caption);
      button.addEventListener("click", () => select(at));
      seen.observe(canvas);
      return button;
    }));
    if (rows.length) await select(first < 0 ? rows.length - 1 : 0);
  }
  async function turn(by) {
    const next = offset + by * page.size;
    if (next < 0 || next >= total) return;
    offset = next;
    await list(by);
  }
  async function step(by) {
    const at = state.number + by;
    if (at < 0 || at >= rows.length) await turn(by); else await select(at, true);
  }
  async function follow() {  // the figures of a run that goes on
    const answer = await (await ask("api/state")).json();
    if (answer.version === version) return;
    version = answer.version;
    find("summary").innerHTML = answer.summary; find("sections").innerHTML = answer.sections; find("time").textContent = answer.time;
  }
  filters.addEventListener("change", () => { offset = 0; list(); });
  filters.addEventListener("submit", (event) => { event.preventDefault(); offset = 0; list(); });
  find("back").addEventListener("click", () => turn(-1));
  find("forward").addEventListener("click", () => turn(1));
  keys(step);
  setInterval(() => follow().catch(() => { find("time").textContent = "the server does not answer"; }), page.seconds * 1000);
  list();
  return { list, step, follow, select, reviewed: (verdict) => { if (rows[state.number]) rows[state.number].review = verdict; } };
})();

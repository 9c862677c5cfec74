"use strict";
// Groups, filter and thumbnails of the pictures that the page holds; keys move through them.
(() => {
  const { page, find, element, show, state, percent, keys, miniature } = maskmill;
  const thumbs = find("thumbs"), filter = find("class-filter"), tabs = find("tabs");
  let group = page.groups[0], images = [];
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { seen.unobserve(target); miniature(page.images[target.dataset.image], target); }
  }, { rootMargin: "300px" });
  function select(number, focus = false) {
    thumbs.querySelectorAll("button").forEach((button) => {
      const current = Number(button.dataset.image) === number;
      button.setAttribute("aria-current", current);
      if (current && focus) button.scrollIntoView({ block: "nearest" });
    });
    state.number = number;
    return show(page.images[number]);
  }
  function list() {
    const target = filter.value === "" ? null : Number(filter.value);
    images = group.images.filter((number) => target === null || page.images[number].classes.includes(target));
    if (target !== null && !images.length) images = page.images.map((_, number) => number).filter((number) => page.images[number].classes.includes(target));
    find("group-note").textContent = group.note;
    tabs.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", button.dataset.group === group.key));
    thumbs.replaceChildren(...images.map((number) => {
      const picture = page.images[number], button = element("button", "", null, { type: "button", "data-image": number, "aria-label": picture.name });
      const canvas = element("canvas", "", button, { width: 240, height: 180, "data-image": number });
      const caption = element("span", "", button);
      element("b", picture.name, caption); element("i", percent(picture.accuracy ?? picture.kept), caption);
      button.addEventListener("click", () => select(number));
      seen.observe(canvas);
      return button;
    }));
    if (images.length) select(images.find((number) => page.images[number].classes.length > 1) ?? images[0]);
  }
  for (const entry of page.groups) {
    const button = element("button", entry.title, tabs, { type: "button", "data-group": entry.key });
    button.addEventListener("click", () => { group = entry; list(); });
  }
  const present = new Set(page.images.flatMap((picture) => picture.classes));
  page.classes.forEach((name, target) => { if (present.has(target)) element("option", name, filter, { value: target }); });
  filter.addEventListener("change", list);
  function step(by) {
    const at = images.indexOf(state.number) + by;
    if (at >= 0 && at < images.length) select(images[at], true);
  }
  keys(step);
  if (page.images.length) list();
})();

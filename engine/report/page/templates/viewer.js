"use strict";
// Shows one image in layers: photo, labels before selection, labels, weights. Recolors label maps in a canvas.
const maskmill = (() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const find = (name) => document.querySelector(`[data-part=${name}]`);
  const canvas = find("canvas"), slider = find("slider"), stage = find("stage"), pen = canvas.getContext("2d");
  const state = { picture: null, layers: [], level: null, ticket: 0, hidden: new Set(), zoom: 1, x: 0, y: 0 };
  const rgb = page.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  const percent = (share) => share === null ? "–" : `${(100 * share).toFixed(1)} %`;
  const load = (url) => new Promise((done) => {
    const image = new Image();
    image.onload = () => done(image); image.onerror = () => done(null);
    if (url) image.src = url; else done(null);
  });
  function blank(picture) {
    const layer = document.createElement("canvas");
    layer.width = picture.width; layer.height = picture.height;
    return layer;
  }
  async function values(picture, url) {  // the numbers of a gray PNG
    const image = await load(url), pen = blank(picture).getContext("2d", { willReadFrequently: true });
    if (image) pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, picture.width, picture.height).data.filter((_, index) => index % 4 === 0);
  }
  async function photoOf(picture) {
    const layer = blank(picture), pen = layer.getContext("2d"), image = await load(picture.photo);
    pen.fillStyle = "#80868d"; pen.fillRect(0, 0, layer.width, layer.height);
    if (image) pen.drawImage(image, 0, 0, layer.width, layer.height);
    return layer;
  }
  function paint(picture, map, opacity) {  // a label map in class colors, hatched where there is no label
    const layer = blank(picture), pen = layer.getContext("2d"), image = pen.createImageData(layer.width, layer.height);
    const pixels = new Uint32Array(image.data.buffer), code = (red, green, blue, alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    const stripe = code(255, 255, 255, 120), gap = code(20, 20, 24, 60), table = new Uint32Array(256), none = new Uint8Array(256).fill(1);
    picture.classes.forEach((target, value) => {
      none[value] = 0;
      if (!state.hidden.has(target)) table[value] = code(...rgb[target], target === page.background ? 40 : 255 * opacity);
    });
    for (let row = 0, at = 0; row < layer.height; row++) {
      for (let column = 0; column < layer.width; column++, at++) {
        pixels[at] = none[map[at]] ? ((column + row) % 7 < 2 ? stripe : gap) : table[map[at]];
      }
    }
    pen.putImageData(image, 0, 0);
    return layer;
  }
  function over(photo, labels) {
    const layer = blank(photo), pen = layer.getContext("2d", { willReadFrequently: true });
    pen.drawImage(photo, 0, 0); if (labels) pen.drawImage(labels, 0, 0);
    return layer;
  }
  function weigh(picture, photo, weight) {  // bright where the weight is high
    const layer = over(photo), pen = layer.getContext("2d"), image = pen.getImageData(0, 0, layer.width, layer.height);
    for (let index = 0; index < weight.length; index++) {
      const share = weight[index] / 255, gray = 0.25 * (image.data[4 * index] + image.data[4 * index + 1] + image.data[4 * index + 2]) / 3;
      image.data.set([gray + 190 * share ** 1.5, gray + 205 * share, gray + 90 + 60 * share * (1 - share), 255], 4 * index);
    }
    pen.putImageData(image, 0, 0);
    return layer;
  }
  function compose() {
    const { picture, maps } = state;
    state.layers = [["Photo", maps.photo]];
    if (maps.raw) state.layers.push(["Before", over(maps.photo, paint(picture, maps.raw, 0.62))]);
    state.layers.push(["Labels", over(maps.photo, paint(picture, maps.label, 0.62))], ["Weights", weigh(picture, maps.photo, maps.weight)]);
  }
  function draw() {
    const ratio = window.devicePixelRatio || 1, box = stage.getBoundingClientRect();
    if (canvas.width !== Math.round(box.width * ratio)) { canvas.width = Math.round(box.width * ratio); canvas.height = Math.round(box.height * ratio); }
    pen.setTransform(1, 0, 0, 1, 0, 0); pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!state.picture) return;
    const { picture, zoom } = state, fit = Math.min(canvas.width / picture.width, canvas.height / picture.height), scale = fit * zoom;
    const reach = (size, room) => Math.max(0, (size * scale - room) / 2);
    state.x = Math.min(Math.max(state.x, -reach(picture.width, canvas.width)), reach(picture.width, canvas.width));
    state.y = Math.min(Math.max(state.y, -reach(picture.height, canvas.height)), reach(picture.height, canvas.height));
    state.view = { scale, left: (canvas.width - picture.width * scale) / 2 + state.x, top: (canvas.height - picture.height * scale) / 2 + state.y };
    pen.setTransform(scale, 0, 0, scale, state.view.left, state.view.top);
    pen.imageSmoothingEnabled = scale < 3;
    const below = Math.min(Math.floor(state.level), state.layers.length - 1), share = state.level - below;
    pen.globalAlpha = 1; pen.drawImage(state.layers[below][1], 0, 0);
    if (share > 0 && below + 1 < state.layers.length) { pen.globalAlpha = share; pen.drawImage(state.layers[below + 1][1], 0, 0); pen.globalAlpha = 1; }
    stage.classList.toggle("zoomed", zoom > 1);
  }
  function setLevel(level) {
    state.level = Math.min(Math.max(level, 0), state.layers.length - 1);
    slider.value = state.level;
    find("layer-names").querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", Math.abs(index - state.level) < 0.5));
    draw();
  }
  function element(kind, text, parent, attributes = {}) {
    const node = document.createElement(kind);
    node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent?.append(node);
    return node;
  }
  function describe() {
    const { picture, maps } = state, about = find("figures"), chips = find("chips"), sums = new Map();
    find("name").textContent = picture.name; find("path").textContent = picture.uri === picture.name ? "" : picture.uri;
    about.replaceChildren(); chips.replaceChildren();
    const figures = [["Labeled", percent(picture.kept)], ["Right", picture.accuracy === null ? null : percent(picture.accuracy)],
      ["Size", `${picture.full[0]} × ${picture.full[1]}`], ["Review", picture.review]];
    for (const [name, value] of figures) if (value) { element("dt", name, about); element("dd", value, about); }
    for (const value of maps.label) sums.set(value, (sums.get(value) || 0) + 1);
    picture.classes.forEach((target, value) => {
      if (!sums.get(value) && !picture.present.includes(target)) return;
      const chip = element("button", "", chips, { type: "button", "aria-pressed": !state.hidden.has(target) });
      element("i", "", chip, { class: `swatch k${target}` }); chip.append(page.classes[target]);
      element("small", percent((sums.get(value) || 0) / maps.label.length), chip);
      chip.addEventListener("click", () => {
        if (state.hidden.has(target)) state.hidden.delete(target); else state.hidden.add(target);
        chip.setAttribute("aria-pressed", !state.hidden.has(target)); compose(); draw();
      });
    });
    const names = find("layer-names");
    names.replaceChildren(...state.layers.map(([name], index) => {
      const button = element("button", name, null, { type: "button" });
      button.addEventListener("click", () => setLevel(index));
      return button;
    }));
    slider.max = state.layers.length - 1;
  }
  async function show(picture) {
    const ticket = ++state.ticket;
    const maps = { photo: await photoOf(picture), label: await values(picture, picture.label), weight: await values(picture, picture.weight) };
    maps.raw = picture.raw ? await values(picture, picture.raw) : null;
    if (ticket !== state.ticket) return;  // another picture was chosen meanwhile
    Object.assign(state, { picture, maps, zoom: 1, x: 0, y: 0 });
    compose(); describe();
    setLevel(state.level ?? state.layers.length - 2);
    canvas.setAttribute("aria-label", `${picture.name}: ${percent(picture.kept)} labeled`);
    document.dispatchEvent(new CustomEvent("picture", { detail: picture }));
  }
  function refresh() { compose(); draw(); }
  function place(event) {  // the pixel of the picture under the pointer
    const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width, view = state.view;
    return [((event.clientX - box.left) * ratio - view.left) / view.scale, ((event.clientY - box.top) * ratio - view.top) / view.scale].map(Math.floor);
  }
  function zoomBy(factor) { state.zoom = Math.min(Math.max(state.zoom * factor, 1), 16); draw(); }
  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.picture) return;
    const before = pointers.get(event.pointerId), [column, row] = place(event), { picture, maps } = state;
    const inside = column >= 0 && row >= 0 && column < picture.width && row < picture.height, at = row * picture.width + column;
    const target = inside ? picture.classes[maps.label[at]] : undefined;
    find("under").textContent = !inside ? "" : target === undefined ? "no label" : `${page.classes[target]}, weight ${(maps.weight[at] / 255).toFixed(2)}`;
    if (!before || stage.classList.contains("painting")) return;
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1], gap = (point) => Math.hypot(point.clientX - other.clientX, point.clientY - other.clientY);
      zoomBy(gap(event) / Math.max(gap(before), 1));
    } else if (state.zoom > 1) {
      const ratio = canvas.width / canvas.clientWidth;
      state.x += (event.clientX - before.clientX) * ratio; state.y += (event.clientY - before.clientY) * ratio; draw();
    }
    pointers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { find("under").textContent = ""; });
  canvas.addEventListener("wheel", (event) => { if (event.ctrlKey || state.zoom > 1) { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15); } }, { passive: false });
  canvas.addEventListener("dblclick", () => zoomBy(state.zoom > 1 ? 1 / 16 : 3));
  slider.addEventListener("input", () => setLevel(Number(slider.value)));
  find("closer").addEventListener("click", () => zoomBy(1.5));
  find("farther").addEventListener("click", () => zoomBy(1 / 1.5));
  function keys(step) {  // keys on the picture: images, layers, size
    stage.addEventListener("keydown", (event) => {
      const actions = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(1 / 16) };
      const action = actions[event.key] || (/^[1-4]$/.test(event.key) ? () => setLevel(Number(event.key) - 1) : null);
      if (action && !event.ctrlKey && !event.metaKey) { event.preventDefault(); action(); }
    });
    find("previous").addEventListener("click", () => step(-1));
    find("next").addEventListener("click", () => step(1));
  }
  async function miniature(picture, canvas) {
    const layer = over(await photoOf(picture), paint(picture, await values(picture, picture.label), 0.55));
    const scale = Math.max(canvas.width / layer.width, canvas.height / layer.height), width = layer.width * scale, height = layer.height * scale;
    canvas.getContext("2d").drawImage(layer, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  }
  new ResizeObserver(() => { canvas.width = 0; draw(); }).observe(stage);
  return { page, state, show, setLevel, zoomBy, refresh, describe, draw, place, find, element, percent, keys, miniature };
})();

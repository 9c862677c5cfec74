"use strict";
// Corrects the label map on the screen, and saves it as a review.
(() => {
  const { page, state, find, place, refresh, describe } = maskmill;
  const canvas = find("canvas"), stage = find("stage"), width = find("brush-size"), NONE = 255;
  let tool = null, undo = [], touched = null, pending = 0, last = null, pointer = null;
  const say = (text) => { find("said").textContent = text; };
  function ready() {
    find("undo").disabled = !undo.length; find("save").disabled = !undo.length;
    find("withdraw").disabled = !state.picture?.review;
  }
  function choose(name) {
    tool = name === tool ? null : name;
    stage.classList.toggle("painting", tool !== null);
    document.querySelectorAll("[data-tool]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.tool === tool));
    if (tool) { const names = state.layers.map(([name]) => name); maskmill.setLevel(names.indexOf("Labels")); }
  }
  function repaint() { if (!pending) pending = requestAnimationFrame(() => { pending = 0; refresh(); }); }
  function remember() {
    undo.push([state.maps.label.slice(), touched.slice()]);
    if (undo.length > 30) undo.splice(1, 1);  // the first state stays, so that undo can reach it
    ready();
  }
  const value = () => (tool === "erase" ? NONE : Number(find("paint").value));
  function mark(at) { state.maps.label[at] = value(); touched[at] = 255; }
  function dab([column, row]) {
    const { width: columns, height: rows } = state.picture, radius = Number(width.value) / 2;
    for (let y = Math.max(0, Math.ceil(row - radius)); y <= Math.min(rows - 1, row + radius); y++) {
      for (let x = Math.max(0, Math.ceil(column - radius)); x <= Math.min(columns - 1, column + radius); x++) {
        if ((x - column) ** 2 + (y - row) ** 2 <= radius ** 2 + 0.25) mark(y * columns + x);
      }
    }
  }
  function stroke(from, to) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, Number(width.value) / 4)));
    for (let step = 0; step <= steps; step++) dab([from[0] + (to[0] - from[0]) * step / steps, from[1] + (to[1] - from[1]) * step / steps]);
  }
  function fillSegment([column, row]) {
    const { width: columns, height: rows } = state.picture, map = state.maps.label, start = row * columns + column, old = map[start];
    const seen = new Uint8Array(map.length), queue = [start];
    seen[start] = 1;
    while (queue.length) {
      const at = queue.pop(), x = at % columns;
      for (const next of [x > 0 ? at - 1 : -1, x < columns - 1 ? at + 1 : -1, at - columns, at + columns]) {
        if (next >= 0 && next < columns * rows && !seen[next] && map[next] === old) { seen[next] = 1; queue.push(next); }
      }
      mark(at);
    }
  }
  function fillClass([column, row]) {
    const map = state.maps.label, old = map[row * state.picture.width + column];
    for (let at = 0; at < map.length; at++) if (map[at] === old) mark(at);
  }
  const inside = ([column, row]) => column >= 0 && row >= 0 && column < state.picture.width && row < state.picture.height;
  canvas.addEventListener("pointerdown", (event) => {
    if (!tool || event.button || !state.picture) return;
    const at = place(event);
    if (!inside(at)) return;
    remember();
    if (tool === "segment") fillSegment(at); else if (tool === "class") fillClass(at); else { dab(at); last = at; }
    repaint();
  });
  canvas.addEventListener("pointermove", (event) => {
    pointer = event;
    if (!last) return;
    const at = place(event);
    stroke(last, at); last = at; repaint();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (last) describe(); last = null; });
  function back() {
    const before = undo.pop();
    if (!before) return;
    state.maps.label.set(before[0]); touched = before[1];
    refresh(); describe(); ready();
  }
  function pick() {
    if (!pointer) return;
    const at = place(pointer), under = inside(at) ? state.maps.label[at[1] * state.picture.width + at[0]] : NONE;
    if (under !== NONE) find("paint").value = under;
  }
  function encoded() {  // red: classes, green: 255 where a person decided; without loss in a PNG
    const { width: columns, height: rows } = state.picture, layer = document.createElement("canvas");
    layer.width = columns; layer.height = rows;
    const pen = layer.getContext("2d"), image = pen.createImageData(columns, rows);
    for (let at = 0; at < touched.length; at++) image.data.set([state.maps.label[at], touched[at], 0, 255], 4 * at);
    pen.putImageData(image, 0, 0);
    return layer.toDataURL("image/png");
  }
  async function send(verdict) {
    const { id } = state.picture, body = { verdict, ...(verdict === "corrected" ? { map: encoded() } : {}) };
    say("Saving …");
    const answer = await fetch(`api/reviews/${id}`, { method: "POST", headers: { "Content-Type": "application/json", "X-Maskmill": page.key }, body: JSON.stringify(body) });
    if (!answer.ok) { say(`Not saved: ${await answer.text()}`); return; }
    const picture = await answer.json();
    live.reviewed(picture.review);
    if (state.picture.id === id) await maskmill.show(picture);
    say(verdict === "withdrawn" ? "Withdrawn: the model's labels are back." : `Saved as ${verdict}.`);
  }
  maskmill.mayLeave = () => !undo.length || confirm("The corrections of this image are not saved. Leave it without saving?");
  addEventListener("beforeunload", (event) => { if (undo.length) event.preventDefault(); });
  document.addEventListener("picture", () => { undo = []; touched = new Uint8Array(state.maps.label.length); last = null; say(""); ready(); });
  document.querySelectorAll("[data-tool]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.tool)));
  const verdicts = { save: "corrected", accept: "accepted", reject: "rejected", withdraw: "withdrawn" };
  for (const [part, verdict] of Object.entries(verdicts)) find(part).addEventListener("click", () => send(verdict).catch((error) => say(`Not saved: ${error.message}`)));
  find("undo").addEventListener("click", back);
  stage.addEventListener("keydown", (event) => {
    const resize = (by) => { width.value = Math.max(1, Number(width.value) + by); };
    const actions = { b: () => choose("brush"), e: () => choose("erase"), f: () => choose("segment"), c: () => choose("class"), p: pick, z: back,
      "[": () => resize(-4), "]": () => resize(4), s: () => find("save").click(), a: () => find("accept").click(), x: () => find("reject").click(), Escape: () => choose(tool) };
    const action = actions[event.key];
    const withControl = event.ctrlKey || event.metaKey;
    if (!action || (withControl && !["z", "s"].includes(event.key))) return;
    event.preventDefault(); action();
  });
})();

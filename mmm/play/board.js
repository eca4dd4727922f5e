// The picture with its mask: a canvas over a strip of frames. Sends `input` with the mask, and `select` with a token.
const find = (name) => element.querySelector(name);
const plane = find(".mmm-plane"), strip = find(".mmm-strip"), canvas = find("canvas"), said = find(".mmm-said");
const frame = find(".mmm-frame"), through = find(".mmm-through"), brush = find(".mmm-brush"), playing = find(".mmm-play");
let board = null, hidden = [], past = [], tool = "hide", cursor = [0, 0], corner = null, stroke = null, timer = null;

const depth = () => board.grid[0], rows = () => board.grid[1], columns = () => board.grid[2];
const time = () => Math.floor((Number(frame.value) * depth()) / board.frames);
const index = (t, row, column) => (t * rows() + row) * columns() + column;
const times = () => (through.checked ? [...Array(depth()).keys()] : [time()]);

function receive() {
  board = props.value && props.value.grid ? props.value : null;
  find(".mmm-empty").hidden = Boolean(board);
  plane.classList.toggle("mmm-full", Boolean(board));
  stop();
  if (!board) { strip.removeAttribute("src"); find(".mmm-time").hidden = true; return; }
  hidden = Array.from(board.hidden, (mark) => mark === "1");
  past = [];
  stroke = corner = null;
  strip.src = board.picture;
  strip.alt = "The picture " + board.label + ", as the model gets it";
  plane.style.aspectRatio = board.size[1] + " / " + board.size[0];
  frame.max = board.frames - 1;
  frame.value = Math.min(Number(frame.value), board.frames - 1);
  find(".mmm-time").hidden = board.frames < 2;
  find(".mmm-tube").hidden = depth() < 2;
  cursor = [Math.min(cursor[0], rows() - 1), Math.min(cursor[1], columns() - 1)];
  if (board.frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches && !plane.matches(":focus-within")) start();
  draw();
  count();
}

function draw() {
  if (!board) return;
  strip.style.transform = "translateY(" + (-100 * Number(frame.value)) / board.frames + "%)";
  find(".mmm-label").textContent = "frame " + (Number(frame.value) + 1) + " of " + board.frames;
  const scale = Math.max(1, Math.round((plane.clientWidth * devicePixelRatio) / columns()));
  canvas.width = columns() * scale;
  canvas.height = rows() * scale;
  const pen = canvas.getContext("2d"), t = time();
  for (let row = 0; row < rows(); row++)
    for (let column = 0; column < columns(); column++) {
      const x = column * scale, y = row * scale;
      if (hidden[index(t, row, column)]) {
        pen.fillStyle = "rgba(38, 48, 92, 0.78)";
        pen.fillRect(x, y, scale, scale);
        pen.strokeStyle = "rgba(255, 255, 255, 0.28)";
        pen.beginPath();
        pen.moveTo(x, y + scale);
        pen.lineTo(x + scale, y);
        pen.stroke();
      }
      pen.strokeStyle = "rgba(255, 255, 255, 0.16)";
      pen.strokeRect(x + 0.5, y + 0.5, scale - 1, scale - 1);
      if (board.token === index(t, row, column)) mark(pen, x, y, scale, "#ff6a00");
    }
  if (plane.matches(":focus")) mark(pen, cursor[1] * scale, cursor[0] * scale, scale, "#ffd400");
  if (corner) rectangle(pen, scale);
}

function mark(pen, x, y, scale, colour) {
  pen.lineWidth = Math.max(2, scale / 10);
  pen.strokeStyle = colour;
  pen.strokeRect(x + 1, y + 1, scale - 2, scale - 2);
  pen.lineWidth = 1;
}

function rectangle(pen, scale) {
  const [top, bottom, left, right] = bounds();
  pen.lineWidth = 3;
  pen.strokeStyle = "#ffd400";
  pen.strokeRect(left * scale, top * scale, (right - left + 1) * scale, (bottom - top + 1) * scale);
  pen.lineWidth = 1;
}

const bounds = () => [Math.min(corner[0], cursor[0]), Math.max(corner[0], cursor[0]), Math.min(corner[1], cursor[1]), Math.max(corner[1], cursor[1])];

function say(words) { said.textContent = words; }

function count() {
  const many = hidden.filter(Boolean).length;
  say(many + " of " + hidden.length + " tokens are hidden (" + Math.round((100 * many) / hidden.length) + " %)");
}

function where() {
  const one = hidden[index(time(), cursor[0], cursor[1])];
  say("row " + (cursor[0] + 1) + " of " + rows() + ", column " + (cursor[1] + 1) + " of " + columns() + ", " + (one ? "hidden" : "visible"));
}

function keep() {
  past.push(hidden.slice());
  if (past.length > 50) past.shift();
}

function dab(row, column, value) {
  const size = Number(brush.value), before = Math.floor((size - 1) / 2);
  for (const t of times())
    for (let r = row - before; r < row - before + size; r++)
      for (let c = column - before; c < column - before + size; c++)
        if (r >= 0 && c >= 0 && r < rows() && c < columns()) hidden[index(t, r, c)] = value;
}

function fill() {
  const [top, bottom, left, right] = bounds();
  for (const t of times())
    for (let row = top; row <= bottom; row++)
      for (let column = left; column <= right; column++) hidden[index(t, row, column)] = true;
  corner = null;
}

function send() {
  draw();
  count();
  trigger("input", { hidden: hidden.map((one) => (one ? "1" : "0")).join("") });
}

function look() {
  board.token = index(time(), cursor[0], cursor[1]);
  draw();
  where();
  trigger("select", { token: board.token });
}

function at(event) {
  const box = plane.getBoundingClientRect();
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows()), column = Math.floor(((event.clientX - box.left) / box.width) * columns());
  return [Math.max(0, Math.min(rows() - 1, row)), Math.max(0, Math.min(columns() - 1, column))];
}

plane.addEventListener("pointerdown", (event) => {
  if (!board || event.button > 0) return;
  event.preventDefault();
  plane.focus({ preventScroll: true });
  stop();
  cursor = at(event);
  if (tool === "look") return look();
  plane.setPointerCapture(event.pointerId);
  keep();
  stroke = tool;
  if (tool === "block") corner = cursor;
  else dab(cursor[0], cursor[1], tool === "hide");
  draw();
});
plane.addEventListener("pointermove", (event) => {
  if (!board || !stroke) return;
  const [from, to] = [cursor, at(event)];
  const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  cursor = to;
  if (stroke !== "block")
    for (let step = 1; step <= steps; step++)
      dab(Math.round(from[0] + ((to[0] - from[0]) * step) / steps), Math.round(from[1] + ((to[1] - from[1]) * step) / steps), stroke === "hide");
  draw();
});
function finish() {
  if (!stroke) return;
  if (stroke === "block") fill();
  stroke = null;
  send();
}
plane.addEventListener("pointerup", finish);
plane.addEventListener("pointercancel", finish);

function use() {
  if (tool === "look") return look();
  if (tool === "block" && !corner) { corner = cursor.slice(); draw(); return say("one corner is set; move to the other, and press Enter"); }
  keep();
  if (tool === "block") fill();
  else dab(cursor[0], cursor[1], tool === "hide");
  send();
}

plane.addEventListener("keydown", (event) => {
  if (!board) return;
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, pages = { PageUp: -1, PageDown: 1 };
  const tools = { h: "hide", s: "show", b: "block", l: "look" };
  if (moves[event.key]) {
    cursor = [0, 1].map((axis) => Math.max(0, Math.min(board.grid[axis + 1] - 1, cursor[axis] + moves[event.key][axis])));
    draw();
    where();
  } else if (pages[event.key]) {
    stop();
    frame.value = Number(frame.value) + pages[event.key];
    draw();
    say(find(".mmm-label").textContent);
  } else if (event.key === "Enter" || event.key === " ") use();
  else if (event.key === "Escape") { corner = null; draw(); }
  else if (tools[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) choose(tools[event.key]);
  else return;
  event.preventDefault();
});
plane.addEventListener("focus", draw);
plane.addEventListener("blur", draw);

function choose(name) {
  tool = name;
  corner = null;
  for (const button of element.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === tool));
    button.tabIndex = button.dataset.tool === tool ? 0 : -1;
  }
  draw();
}
for (const button of element.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => choose(button.dataset.tool));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = [...element.querySelectorAll("[data-tool]")], next = all[(all.indexOf(button) + step + all.length) % all.length];
    choose(next.dataset.tool);
    next.focus();
    event.preventDefault();
  });
}
const acts = {
  undo: () => { if (past.length) hidden = past.pop(); },
  invert: () => { keep(); hidden = hidden.map((one) => !one); },
  clear: () => { keep(); hidden = hidden.map(() => false); },
};
for (const button of element.querySelectorAll("[data-act]"))
  button.addEventListener("click", () => { if (board) { acts[button.dataset.act](); send(); } });

function stop() {
  clearInterval(timer);
  timer = null;
  playing.setAttribute("aria-pressed", "false");
  playing.textContent = "Play";
}
function start() {
  timer = setInterval(() => { frame.value = (Number(frame.value) + 1) % board.frames; draw(); }, 125);
  playing.setAttribute("aria-pressed", "true");
  playing.textContent = "Pause";
}
playing.addEventListener("click", () => (timer ? stop() : start()));
frame.addEventListener("input", () => { stop(); draw(); });
new ResizeObserver(draw).observe(plane);
choose("hide");
watch("value", receive);
receive();

// Panels side by side: pictures, or strips of frames with one slider for all of them.
const find = (name) => element.querySelector(name);
const panels = find(".mmm-panels"), frame = find(".mmm-frame"), playing = find(".mmm-play"), label = find(".mmm-label");
let view = null, timer = null, strips = [];

function receive() {
  view = props.value && props.value.panels ? props.value : null;
  stop();
  panels.replaceChildren();
  find(".mmm-notes").replaceChildren();
  strips = [];
  find(".mmm-time").hidden = !view || view.labels.length < 2;
  if (!view) return;
  let row = null, group = null;
  for (const panel of view.panels) {
    if (row === null || panel.group !== group) {
      group = panel.group;
      row = document.createElement("div");
      row.className = "mmm-row";
      if (group) {
        const heading = document.createElement("h4");
        heading.textContent = group;
        panels.append(heading);
      }
      panels.append(row);
    }
    const figure = document.createElement("figure"), box = document.createElement("div"), image = document.createElement("img");
    const caption = document.createElement("figcaption");
    box.className = "mmm-cell";
    box.style.aspectRatio = panel.size[1] + " / " + panel.size[0];
    image.src = panel.picture;
    image.alt = panel.alt;
    if (panel.size[1] < 160) image.classList.add("mmm-sharp");
    caption.textContent = panel.title;
    box.append(image);
    figure.append(box, caption);
    row.append(figure);
    strips.push([image, panel.frames]);
  }
  for (const note of view.notes) {
    const line = document.createElement("p");
    line.textContent = note;
    find(".mmm-notes").append(line);
  }
  frame.max = view.labels.length - 1;
  if (Number(frame.value) > view.labels.length - 1) frame.value = 0;
  draw();
  if (view.labels.length > 1 && view.moving && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
}

function draw() {
  const number = Number(frame.value);
  for (const [image, count] of strips) {
    const shown = Math.floor((number * count) / view.labels.length);
    image.style.transform = "translateY(" + (-100 * shown) / count + "%)";
  }
  label.textContent = view.labels[number];
  frame.setAttribute("aria-valuetext", view.labels[number]);
}
function stop() {
  clearInterval(timer);
  timer = null;
  playing.setAttribute("aria-pressed", "false");
  playing.textContent = "Play";
}
function start() {
  const wait = view.labels[0].startsWith("step") ? 700 : 125;
  timer = setInterval(() => { frame.value = (Number(frame.value) + 1) % view.labels.length; draw(); }, wait);
  playing.setAttribute("aria-pressed", "true");
  playing.textContent = "Pause";
}
playing.addEventListener("click", () => (timer ? stop() : start()));
frame.addEventListener("input", () => { stop(); draw(); });
watch("value", receive);
receive();

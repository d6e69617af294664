// A picture that is dropped onto the panel, or chosen: its first bytes go to Python, which reads
// what it was made with.

const FIRST_BYTES = 2 << 20; // words stand before the pixels

function render({ model, el }) {
  const file = make("input", { type: "file", accept: "image/png", hidden: true });
  const button = make("button", { type: "button", class: "ql-from-picture" }, "Settings of a picture…");
  button.title = "Takes prompt, seed, steps and recipe from a PNG file; drop one anywhere on this panel";
  el.classList.add("ql-dropped-picture");
  keepKeys(el);
  el.append(button, file);

  const take = async (picture) => {
    if (!picture) return;
    const bytes = await picture.slice(0, FIRST_BYTES).arrayBuffer();
    model.send({ name: picture.name }, undefined, [bytes]);
  };
  button.addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    await take(file.files[0]);
    file.value = ""; // so that the same one can be chosen again
  });

  // The panel is there only once all its parts are.
  let panel = null;
  const holds = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const over = (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    event.stopPropagation(); // else JupyterLab would copy the file into its folder
    if (event.type !== "drop") {
      event.dataTransfer.dropEffect = "copy";
      panel.classList.add("ql-drop-here");
    }
  };
  const leave = (event) => {
    if (!panel.contains(event.relatedTarget)) panel.classList.remove("ql-drop-here");
  };
  const drop = (event) => {
    over(event);
    panel.classList.remove("ql-drop-here");
    take(event.dataTransfer?.files[0]);
  };
  const attach = () => {
    panel = el.closest(".ql-panel");
    if (!panel) return;
    panel.addEventListener("dragenter", over);
    panel.addEventListener("dragover", over);
    panel.addEventListener("dragleave", leave);
    panel.addEventListener("drop", drop);
  };
  const waiting = requestAnimationFrame(attach);
  return () => {
    cancelAnimationFrame(waiting);
    for (const [name, heard] of Object.entries({ dragenter: over, dragover: over, dragleave: leave, drop })) {
      panel?.removeEventListener(name, heard);
    }
  };
}

export default { render };

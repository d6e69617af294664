// Code with a button that copies it.

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page over plain http from another machine has no clipboard: the old way still works there.
    const field = make("textarea", { style: "position:fixed;opacity:0" });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

function render({ model, el }) {
  const name = make("span", { class: "ql-code-name" });
  const button = make("button", { type: "button", class: "ql-copy" }, "Copy");
  const said = make("span", { role: "status" });
  const text = make("pre", { tabindex: "0" });
  el.classList.add("ql-code-box");
  keepKeys(el);
  el.append(make("div", { class: "ql-code-head" }, name, button, said), text);
  let timer;
  button.addEventListener("click", async () => {
    said.textContent = (await copied(model.get("code"))) ? "Copied" : "Mark it and press Ctrl+C";
    button.focus();
    clearTimeout(timer);
    timer = setTimeout(() => { said.textContent = ""; }, 4000);
  });
  const draw = () => {
    el.hidden = !model.get("code");
    name.textContent = model.get("label");
    button.setAttribute("aria-label", `Copy: ${model.get("label")}`);
    text.textContent = model.get("code");
  };
  model.on("change:code", draw);
  model.on("change:label", draw);
  draw();
  return () => clearTimeout(timer);
}

export default { render };

// Code with a button that copies it.

function render({ model, el }) {
  const name = make("span", { class: "ql-code-name" });
  const [button, said] = copyButton("Copy", () => copied(model.get("code")), "Mark it and press Ctrl+C");
  const text = make("pre", { tabindex: "0" });
  el.classList.add("ql-code-box");
  keepKeys(el);
  el.append(make("div", { class: "ql-code-head" }, name, button, said), text);
  const draw = () => {
    el.hidden = !model.get("code");
    name.textContent = model.get("label");
    button.setAttribute("aria-label", `Copy: ${model.get("label")}`);
    text.textContent = model.get("code");
  };
  model.on("change:code", draw);
  model.on("change:label", draw);
  draw();
}

export default { render };

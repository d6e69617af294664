// What the scripts of all widgets use. Python puts this file in front of theirs.

/** Make an element; text goes in as text, so a prompt can't become markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Width in CSS pixels at which to show a picture: whole times enlarged, or reduced to fit. */
function fittedWidth(width, height, roomAcross, roomDown) {
  const times = Math.min(roomAcross / width, roomDown / height);
  return width * (times >= 1 ? Math.floor(times) : times);
}

/** Keep keys from the notebook, where a plain letter is a command; saving still works. */
function keepKeys(element) {
  element.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (!command || event.key === "Enter") event.stopPropagation();
  });
}

/** Address of the bytes that Python sent. */
function addressOf(bytes, type) {
  return URL.createObjectURL(new Blob([bytes], { type }));
}

/** Set an image's address once the new picture is decoded, so that it never flashes white. */
async function swap(image, address) {
  image.dataset.wanted = address;
  const next = new Image();
  next.src = address;
  try {
    await next.decode();
  } catch {
    return; // the address was withdrawn meanwhile: a newer picture is on its way
  }
  if (image.dataset.wanted === address) image.src = address;
}

/** Copy a text; whether that came true. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page over plain http from another machine has no clipboard: the old way still works there.
    const focused = document.activeElement;
    const field = make("textarea", { style: "position:fixed;opacity:0" });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return done;
  }
}

/** Copy the picture of an address; whether that came true. */
async function copiedPicture(address) {
  try {
    const picture = fetch(address).then((answer) => answer.blob());
    await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
    return true;
  } catch {
    return false; // a page over plain http, or a browser that copies texts alone
  }
}

/** A button that copies, and what says whether it did; copy returns a promise of that. */
function copyButton(text, copy, otherwise) {
  const said = make("span", { class: "ql-copied", role: "status" });
  const button = make("button", { type: "button", class: "ql-copy", onclick: async () => {
    const done = await copy();
    said.textContent = done ? "Copied" : otherwise;
    clearTimeout(Number(said.dataset.timer));
    said.dataset.timer = setTimeout(() => { said.textContent = ""; }, 4000);
  } }, text);
  return [button, said];
}

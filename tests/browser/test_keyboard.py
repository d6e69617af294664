"""Every panel by the keyboard alone, and every control with a name for a screen reader."""

import pytest

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api").expect

MADE = "import os\nos.environ['XDG_CACHE_HOME'] = os.path.abspath('cache')\n"
PANELS = (
    MADE + "from quantolab import widgets\nexplorer = widgets.explorer('demo')\n"
    "explorer.set(recipes=['none', 'int8'], prompts='a white dog', steps=1, repeats=1, "
    "dtype='float32')\n"
    "explorer.form.mixed.value = explorer.form.skips.value = True\nexplorer",
    "widgets.skip_explorer('demo')",
    "widgets.single_file_loader()",
    "widgets.save_panel('demo')",
    "widgets.compile_explorer('demo')",
)

# What can be used: roles of controls, in the browser's own accessibility tree.
CONTROLS = {
    "button", "checkbox", "combobox", "listbox", "textbox", "tab", "slider", "spinbutton", "link",
    "searchbox", "radio", "switch", "menuitem", "DisclosureTriangle",
}  # fmt: skip


def nameless(page, selector):
    """Return the controls inside an element that a screen reader can't name, as HTML."""
    cdp = page.context.new_cdp_session(page)
    cdp.send("DOM.enable")
    cdp.send("Accessibility.enable")
    root = cdp.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    node = cdp.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    nodes = cdp.send("Accessibility.queryAXTree", {"nodeId": node})["nodes"]
    found = [n for n in nodes if not n["ignored"] and n["role"]["value"] in CONTROLS]
    assert len(found) > 3, "the tree holds no controls: nothing was looked at"
    without = [n for n in found if not n.get("name", {}).get("value", "").strip()]
    return [
        cdp.send("DOM.getOuterHTML", {"backendNodeId": n["backendDOMNodeId"]})["outerHTML"][:200]
        for n in without
    ]


def focus_by_tab(page, label, most=60):
    """Press Tab until what has the focus carries such a name."""
    for _ in range(most):
        page.keyboard.press("Tab")
        name = page.evaluate(
            """() => { const e = document.activeElement;
                return [e.getAttribute("aria-label"), e.title, e.textContent, e.placeholder,
                        e.labels?.[0]?.textContent].filter(Boolean).join(" | ") }"""
        )
        if label in name:
            return
    raise AssertionError(f"Tab doesn't reach {label!r}")


def test_every_panel(notebooks):
    page = notebooks.open([PANELS[0], *PANELS[1:]], height=6000)
    explorer = page.locator(".ql-explorer")
    expect(explorer.locator(".ql-estimate")).to_contain_text("Predicted from shapes")

    # Names, while everything that folds is open.
    names = ("explorer", "skip-explorer", "single-file", "save", "compile")
    assert {name: nameless(page, f".ql-{name}") for name in names} == {key: [] for key in names}

    # Skip lists are reached by Tab, which unfolds them, and go on inside.
    for name in ("single-file", "save", "compile"):
        panel = page.locator(f".ql-{name}")
        panel.get_by_label("Compute in").focus()
        focus_by_tab(page, "Layers to keep unquantized")
        page.keyboard.press("Enter")
        expect(panel.get_by_label("Find layers")).to_be_visible()
        focus_by_tab(page, "Find layers")
        page.keyboard.press("Shift+Tab")
        focus_by_tab(page, "Find layers", most=4)

    # The explorer's main job: a word that the demo doesn't know is mended, run, looked at, taken.
    explorer.get_by_label("Prompts", exact=True).focus()
    expect(explorer.locator(".ql-hints")).to_contain_text("doesn't know 'dog'")
    expect(explorer.locator(".ql-doubt")).to_contain_text("doesn't know 'dog'")
    focus_by_tab(page, "circle")
    page.keyboard.press("Enter")
    expect(explorer.get_by_label("Prompts", exact=True)).to_have_value("a white circle")
    expect(explorer.locator(".ql-doubt")).to_have_count(0)
    focus_by_tab(page, "Runs each recipe in a process of its own")
    page.keyboard.press("Space")
    expect(explorer.locator(".ql-status")).to_contain_text("Done: 2 trials")
    expect(explorer.locator(".ql-estimate")).not_to_contain_text("Reading the shapes")
    focus_by_tab(page, "Pictures")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(explorer.get_by_role("tab", name="Take away")).to_have_attribute("aria-selected", "true")
    assert nameless(page, ".ql-explorer") == []
    focus_by_tab(page, "CSV")
    page.keyboard.press("Enter")
    expect(explorer.locator(".ql-download")).to_be_visible()

    # Steps that Resume wouldn't use are said.
    steps = explorer.get_by_label("Steps", exact=True)
    steps.fill("7")
    steps.press("Tab")
    expect(explorer.locator(".ql-add")).to_be_hidden()

"""The panels for one topic each, opened and used by mouse and by keyboard."""

import re

import pytest

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api").expect

START = "import os, tempfile\nimport quantolab as ql\nfrom quantolab import widgets\n"
DEMO = "folder = ql.demo_model() / 'transformer'\n"
FILE = "diffusion_pytorch_model.safetensors"
HERE = "os.chdir(tempfile.mkdtemp())\n"
WITHOUT_KERNEL = ".ql-static"


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


@pytest.mark.sweep  # by keyboard alone: test_keyboard.py
def test_skips_by_keyboard_and_by_mouse(notebooks, shoot):
    page = notebooks.open([START + "panel = widgets.skip_explorer('demo')", "panel"], height=1500)
    panel = page.locator(".ql-skip-explorer")
    expect(panel.locator(".ql-preview")).to_have_text(re.compile(r"^\d+ Linear layers in transfo"))
    shoot(panel, "skips-start")
    search = page.get_by_label("Find layers")
    search.click()
    page.keyboard.type("proj_ot")
    expect(panel.locator(".ql-preview")).to_contain_text("hits no layer")
    page.get_by_role("button", name="proj_out", exact=True).click()
    expect(search).to_have_value("proj_out")
    expect(search).to_be_focused()
    expect(panel.locator(".ql-preview")).to_contain_text("keeping them adds")
    page.keyboard.press("Enter")
    expect(panel.locator(".ql-chip")).to_have_text(["proj_out  ✕"])
    expect(search).to_have_value("")
    page.keyboard.type("norm1.linear")
    listed = page.get_by_label("Linear layers")
    expect(listed.locator("option").first).to_have_text(re.compile("norm1.linear"))
    expect(panel.locator(".ql-preview")).to_contain_text("norm1.linear hits no layer")
    listed.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("button", name="Keep the marked one")).to_be_enabled()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(panel.locator(".ql-chip")).to_have_count(2)
    expect(panel.locator(".ql-status")).to_have_text(re.compile(r"^At int8, \d+ of \d+ Linear"))
    panel.get_by_label("Show", exact=True).select_option("what is kept")
    expect(panel.locator(".ql-scroll tbody tr").first).to_contain_text("kept: ")
    shoot(panel, "skips-light")
    panel.locator(".ql-chip").first.click()
    expect(panel.locator(".ql-chip")).to_have_count(1)
    panel.locator("summary", has_text="The same by code").click()
    expect(panel.locator(".ql-code pre")).to_contain_text('ql.skip_report("demo", [')


def test_a_single_file(notebooks, shoot, press):
    cell = START + DEMO + "os.chdir(folder)\npanel = widgets.single_file_loader()"
    page = notebooks.open([cell, "panel"], height=1100)
    panel = page.locator(".ql-single-file")
    choose = page.get_by_label("Choose", exact=True)
    choose.select_option(label=choose.locator("option", has_text=FILE).inner_text())
    expect(panel.locator(".ql-about")).to_contain_text("Diffusers' own")
    expect(panel.locator(".ql-about [role=alert]")).to_have_count(0)
    press(button(page, "Load"))
    expect(panel.locator(".ql-status")).to_contain_text("Loaded in")
    expect(panel.get_by_text("weights in memory")).to_be_visible()
    shoot(panel, "single-file-light")
    path = page.get_by_label("File", exact=True)
    path.fill("model.ckpt")
    path.press("Enter")
    expect(panel.locator(".ql-error", has_text="isn't there")).to_be_visible()


def test_save_verify_and_load(notebooks, shoot, press):
    page = notebooks.open([START + HERE + "panel = widgets.save_panel('demo')", "panel"])
    panel = page.locator(".ql-save")
    expect(page.get_by_label("Folder", exact=True)).to_have_value("demo-transformer-int8")
    press(button(page, "Save"))
    expect(panel.locator(".ql-status")).to_contain_text("Saved in")
    page.get_by_role("button", name="Verify").click()
    expect(panel.locator(".ql-cancel")).to_be_enabled()
    expect(panel.locator(".ql-status")).to_contain_text("everything that was compared is equal")
    expect(panel.locator(".ql-table", has_text="greatest difference of weights")).to_be_visible()
    page.get_by_role("button", name="Verify").click()
    expect(panel.locator(".ql-cancel")).to_be_enabled()
    panel.locator(".ql-cancel").click()
    expect(panel.locator(".ql-status")).to_have_text("Cancelled.")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(panel.locator(".ql-status")).to_contain_text("Loaded in")
    shoot(panel, "save-light")


@pytest.mark.sweep  # a row arrives in tests/widgets/test_compiling.py always
def test_compiling_in_the_dark(notebooks, shoot, shallow_pipeline, press):
    cells = [START + f"panel = widgets.compile_explorer({str(shallow_pipeline)!r})", "panel"]
    page = notebooks.open(cells, theme="dark", height=1300)
    panel = page.locator(".ql-compile")
    for label, text in (("Steps", "1"), ("Repeats", "1")):
        page.get_by_label(label, exact=True).fill(text)
        page.keyboard.press("Tab")
    page.get_by_label("none", exact=True).uncheck()
    expect(panel).to_contain_text("1 to compile")
    press(button(page, "Run"))
    expect(panel.locator(".ql-table tbody tr")).to_have_count(1)
    expect(panel.locator(".ql-status")).to_contain_text("Finished: 1 of 1 compiled")
    expect(panel.locator("img.ql-on-dark")).to_be_visible()
    expect(panel.locator("img.ql-on-light")).to_be_hidden()
    shoot(panel, "compile-dark")
    press(button(page, "Run"))
    expect(panel.locator(".ql-table")).to_contain_text("running")
    page.get_by_role("button", name="Cancel").click()
    expect(panel.locator(".ql-status")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


@pytest.mark.sweep  # the colours are one file's, and the explorer's are looked at always
def test_the_others_in_the_dark(notebooks, shoot):
    cells = [
        START + DEMO + HERE,
        "skips = widgets.skip_explorer('demo')\nskips.skip = ('proj_out', '*.attn.to_q')\n"
        "skips.wait()\nskips",
        "single = widgets.single_file_loader()\n"
        f"single.path.value = str(folder / {FILE!r})\nsingle.wait()\nsingle.run(wait=True)\nsingle",
        "saving = widgets.save_panel('demo')\n"
        "saving.run(wait=True)\nsaving.verify(wait=True)\nsaving",
    ]
    page = notebooks.open(cells, theme="dark", height=1500)
    for name, text in (
        ("skip-explorer", "Linear layers stay unquantized"),
        ("single-file", "Loaded in"),
        ("save", "everything that was compared is equal"),
    ):
        panel = page.locator(f".ql-{name}")
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".ql-status")).to_contain_text(text)
        expect(panel.locator(".ql-table").first).to_be_visible()
        shoot(panel, f"{name}-dark")
    expect(page.locator(WITHOUT_KERNEL).first).to_be_hidden()

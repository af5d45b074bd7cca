# ruff: noqa: E501  (JavaScript and stored text are kept on one line)
"""The web page in a real browser, against `fake_server`.

Every test runs under the strict Content-Security-Policy, and fails if the page asks any other
origin for anything, throws, or breaks the policy (see the `open_page` fixture).
"""

import re
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip(
    "playwright.sync_api", reason="the playwright package is not installed (pip install playwright)"
)
from playwright.sync_api import Page, expect

from .fake_server import STATIC, FakeServer

PATIENCE = 40_000  # milliseconds; a machine that trains beside the tests is slow to answer
expect.set_options(timeout=PATIENCE)
OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser, server: FakeServer) -> Iterator[OpenPage]:
    problems: list[str] = []
    contexts = []

    def watch_console(message) -> None:
        text = message.text
        if message.type == "error" and "Failed to load resource" not in text:
            problems.append(text)

    def watch_request(request) -> None:
        if not request.url.startswith((server.url, "data:")):
            problems.append(f"request to another origin: {request.url}")

    def open_it(*, wait: bool = True, **options) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options}
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", watch_console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", watch_request)
        page.goto(server.url)
        if wait:
            expect(page.locator("#model-name")).not_to_be_empty()
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def finished(page: Page, count: int = 1) -> None:
    """Waits until `count` answers are complete."""
    expect(page.locator(".answer .foot:visible")).to_have_count(count)
    expect(page.locator("#send")).to_be_visible()


def answer(page: Page):
    return page.locator(".answer .body").last


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_streams_and_its_footer_tells_the_figures(page: Page, server: FakeServer) -> None:
    send(page, "say something")
    finished(page)
    assert answer(page).inner_text() == "You wrote: say something"
    assert re.fullmatch(
        r"5 tokens · [\d.,]+ tokens/s · first token [\d.]+ s · 26 of 2,048 context",
        page.locator(".foot .soft").inner_text(),
    )
    [request] = server.requests
    context = request.pop("context_id")
    assert request == {
        "model": "fourbee-mini",
        "messages": [{"role": "user", "content": "say something"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # A conversation has one name, a new one another.
    send(page, "more")
    finished(page, 2)
    page.locator("#new-chat").click()
    send(page, "anew")
    finished(page)
    names = [one.get("context_id") for one in server.requests[1:]]
    assert names[0] == context != names[1] and re.fullmatch("[0-9a-f]{32}", names[1])


def test_chinese_and_emoji_survive_chunks_cut_inside_a_character(page: Page) -> None:
    text = "天气真好。😀" * 40
    send(page, text + " x")
    finished(page)
    assert text in answer(page).inner_text()


def test_formatting_is_minimal_and_safe(page: Page) -> None:
    send(page, "formatted")
    finished(page)
    assert page.locator(".answer h3").inner_text() == "Carry by carry"
    assert page.locator(".answer strong").all_inner_texts() == ["one digit at a time", "632"]
    assert page.locator(".answer p code").inner_text() == "347 + 285"
    assert "    return a + b  # <b>not bold</b>" in page.locator(".answer pre").inner_text()
    assert page.locator(".answer .code .soft").inner_text() == "python"


def test_hostile_text_stays_text(page: Page) -> None:
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    send(page, "hostile <b>bold</b>")
    finished(page)
    assert "<script>alert(1)</script>" in answer(page).inner_text()
    assert page.locator("#conversation").locator("img, script, a, b").count() == 0
    assert dialogs == []


def test_reasoning_empty_and_cut_answers_say_what_they_are(page: Page) -> None:
    send(page, "reasoning")
    finished(page)
    assert page.locator(".reasoning p").text_content() == "Let me think about it."
    send(page, "cut")
    finished(page, 2)
    assert "cut off at the token limit" in page.locator(".foot").last.inner_text()
    send(page, "empty")
    finished(page, 3)
    assert answer(page).inner_text() == "The model returned an empty answer."


def test_a_reader_can_select_text_while_an_answer_streams(page: Page) -> None:
    send(page, "slow")
    expect(answer(page)).to_contain_text("Line 3 ")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer .body p'))")
    expect(answer(page)).to_contain_text("Line 8 ")
    assert page.evaluate("String(getSelection().getRangeAt(0))").startswith(
        "Line 0 of a long answer"
    )


def test_a_very_long_answer_is_complete_and_quick_to_extend(page: Page, server: FakeServer) -> None:
    """5,000 code blocks and a line of 100,000 characters; then the slowest task while more arrives."""
    page.evaluate(
        """() => addEventListener("pagehide", () => sessionStorage.setItem("fourbee.messages", JSON.stringify([
            {role: "user", content: "question"},
            {role: "assistant", stats: {}, finish: "stop", content: "```js\\nlet x = 1;\\n```\\n".repeat(5000) + "y".repeat(100000)}])))"""
    )
    page.reload()
    finished(page)
    assert page.locator(".answer .code").count() == 5000
    assert len(page.locator(".answer .body > p").inner_text()) == 100_000
    page.evaluate(
        """() => {
            window.slowest = 0;
            new PerformanceObserver((list) => list.getEntries().forEach((task) => { slowest = Math.max(slowest, task.duration); }))
                .observe({type: "longtask"});
        }"""
    )
    send(page, "slow")
    expect(answer(page)).to_contain_text("Line 10 ")
    page.keyboard.press("Escape")
    finished(page, 2)
    assert page.evaluate("slowest") < 2000  # measured 52 to 74 ms on 2 busy cores


# -- stopping, keys, scrolling -------------------------------------------------------------------


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_the_partial_answer(page: Page, server: FakeServer, way: str) -> None:
    send(page, "slow")
    expect(answer(page)).to_contain_text("Line 1 ")
    if way == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    finished(page)
    assert "Line 1 " in answer(page).inner_text()
    assert "stopped" in page.locator(".foot").inner_text()
    deadline = time.monotonic() + 20
    while not server.aborted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.aborted == 1, "the server was not told"
    send(page, "go on")
    finished(page, 2)
    assert [message["role"] for message in server.requests[-1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


def test_shift_enter_makes_a_line_and_input_methods_do_not_send(
    page: Page, server: FakeServer
) -> None:
    page.focus("#prompt")
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    for init in ("{key: 'Enter', isComposing: true}", "{key: 'Enter', keyCode: 229}"):
        page.evaluate(
            f"document.getElementById('prompt').dispatchEvent(new KeyboardEvent('keydown', {{...{init}, bubbles: true}}))"
        )
    assert page.input_value("#prompt") == "first\nsecond"
    assert server.requests == []
    page.keyboard.press("Enter")
    finished(page)
    assert server.requests[0]["messages"][0]["content"] == "first\nsecond"


def test_the_input_grows_and_shrinks(page: Page) -> None:
    height = "document.getElementById('prompt').offsetHeight"
    small = page.evaluate(height)
    page.fill("#prompt", "line\n" * 6)
    assert page.evaluate(height) > small * 2
    page.fill("#prompt", "line\n" * 200)
    assert page.evaluate(height) < 800 * 0.45
    page.press("#prompt", "Enter")
    assert page.evaluate(height) == small


def test_following_ends_when_the_reader_scrolls_up_and_resumes_at_the_bottom(page: Page) -> None:
    top = "document.getElementById('scroller').scrollTop"
    send(page, "slow")
    expect(answer(page)).to_contain_text("Line 25 ")
    assert page.evaluate(top) > 0
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -400)
    expect(page.locator("#to-latest")).to_be_visible()
    before = page.evaluate(top)
    expect(answer(page)).to_contain_text("Line 40 ")
    assert page.evaluate(top) == before
    page.keyboard.press("Escape")
    finished(page)
    assert page.evaluate(top) == before, "the end of an answer moved the text being read"
    page.click("#to-latest")
    expect(page.locator("#to-latest")).to_be_hidden()


# -- failures ------------------------------------------------------------------------------------


def test_an_error_frame_is_one_line_and_retry_replaces_the_partial_answer(
    page: Page, server: FakeServer
) -> None:
    send(page, "error frame")
    expect(page.locator("#failure-text")).to_have_text("the engine ran out of memory pages")
    assert answer(page).inner_text().strip() == "A beginning that"
    assert "incomplete" in page.locator(".foot").inner_text()
    page.click("#retry")
    expect(page.locator("#failure-text")).to_have_text("the engine ran out of memory pages")
    assert page.locator(".answer").count() == 1
    assert server.requests[0] == server.requests[1]


def test_a_broken_stream_and_a_refused_request_say_so(page: Page) -> None:
    send(page, "broken")
    expect(page.locator("#failure-text")).to_have_text(
        "The connection broke before the answer was complete."
    )
    assert answer(page).inner_text() == "Half an ans"
    send(page, "too long")
    expect(page.locator("#failure-text")).to_have_text(
        "the prompt has 3,012 tokens; this model's context is 2,048"
    )
    assert page.locator(".answer").count() == 1


def test_an_unreachable_server_is_retried(page: Page) -> None:
    page.route("**/v1/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    send(page, "hello")
    expect(page.locator("#failure-text")).to_have_text("The server could not be reached.")
    expect(page.locator("#status")).to_have_text("The server cannot be reached. Trying again…")
    page.unroute("**/v1/**")
    page.unroute("**/health")
    expect(page.locator("#status")).to_be_empty()
    page.click("#retry")
    finished(page)
    assert page.locator(".user").count() == 1


def test_a_loading_server_is_waited_for(open_page: OpenPage, server: FakeServer) -> None:
    server.loading = True
    page = open_page(wait=False)
    expect(page.locator("#status")).to_have_text("Loading the model…")
    send(page, "hello")  # may be sent already: it is answered as soon as the model is there
    time.sleep(0.3)
    server.loading = False
    finished(page)
    expect(page.locator("#status")).not_to_have_text("Loading the model…")
    assert page.locator("#failure").is_hidden()
    assert server.requests[-1]["model"] == "fourbee-mini"


def test_a_key_is_asked_for_checked_and_kept_in_the_tab(
    open_page: OpenPage, server: FakeServer
) -> None:
    server.key = "secret"
    page = open_page(wait=False)
    expect(page.locator("#key-label")).to_contain_text("asks for an API key")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#key-label")).to_contain_text("refused this key")
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    page.reload()
    send(page, "hello")
    finished(page)
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0


def test_a_key_asked_for_in_mid_chat_answers_the_waiting_message(
    page: Page, server: FakeServer
) -> None:
    server.key = "secret"
    send(page, "hello")
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    finished(page)
    assert page.locator(".user").count() == 1
    assert page.locator("#failure").is_hidden()


# -- the conversation ----------------------------------------------------------------------------


def test_a_reload_keeps_the_conversation_and_new_chat_discards_it(
    page: Page, server: FakeServer
) -> None:
    send(page, "one")
    finished(page)
    page.reload()
    finished(page)
    assert answer(page).inner_text() == "You wrote: one"
    send(page, "two")
    finished(page, 2)
    assert [message["content"] for message in server.requests[-1]["messages"]] == [
        "one",
        "You wrote: one",
        "two",
    ]
    page.click("#new-chat")
    assert page.locator(".message").count() == 0
    page.reload()
    expect(page.locator("#examples button")).to_have_count(6)
    assert page.locator(".message").count() == 0


def test_a_reload_in_mid_answer_keeps_what_had_arrived(page: Page) -> None:
    send(page, "slow")
    expect(answer(page)).to_contain_text("Line 2 ")
    page.reload()
    finished(page)
    expect(answer(page)).to_contain_text("Line 2 ")
    assert "incomplete" in page.locator(".foot").inner_text()


def test_a_message_without_an_answer_offers_one_after_a_reload(page: Page) -> None:
    page.evaluate(
        """addEventListener("pagehide", () => sessionStorage.setItem("fourbee.messages", '[{"role": "user", "content": "hello"}]'))"""
    )
    page.reload()
    expect(page.locator("#failure-text")).to_have_text("This message has no answer yet.")
    page.click("#retry")
    finished(page)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "null",
        '"text"',
        '[null, 1, {"role": "constructor"}, {"role": "user"}]',
        '[{"role": "assistant"}]',
    ],
)
def test_damaged_storage_does_not_break_the_page(page: Page, content: str) -> None:
    page.evaluate(
        "content => addEventListener('pagehide', () => sessionStorage.setItem('fourbee.messages', content))",
        content,
    )
    page.reload()
    expect(page.locator("#model-name")).not_to_be_empty()
    page.click("#new-chat")
    send(page, "hello")
    finished(page)


# -- settings ------------------------------------------------------------------------------------


def test_settings_show_the_servers_defaults_and_are_sent_only_when_filled(
    page: Page, server: FakeServer
) -> None:
    page.click("#settings-button")
    placeholders = [
        page.get_attribute(f"#{name}", "placeholder")
        for name in ("temperature", "top_p", "max_tokens")
    ]
    assert placeholders == ["0", "1", "≤ 2,048"]
    page.fill("#temperature", "0.7")
    page.fill("#max_tokens", "64")
    assert page.inner_text("#settings-button") == "Settings · 2"
    send(page, "hello")
    finished(page)
    assert server.requests[0]["temperature"] == 0.7
    assert server.requests[0]["max_tokens"] == 64
    assert "top_p" not in server.requests[0]


IMPOSSIBLE = [
    ("temperature", "3"),
    ("temperature", "-1"),
    ("top_p", "0"),
    ("top_p", "1.5"),
    ("max_tokens", "0"),
    ("max_tokens", "1.5"),
]


def test_an_impossible_setting_is_pointed_at_and_nothing_is_sent(
    page: Page, server: FakeServer
) -> None:
    for field, value in IMPOSSIBLE:
        page.click("#settings-button")
        page.fill(f"#{field}", value)
        page.click("#settings-button")
        send(page, "hello")
        expect(page.locator(f"#{field}")).to_be_focused()
        assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
        assert page.input_value("#prompt") == "hello"
        page.fill(f"#{field}", "")
        page.click("#settings-button")
    assert server.requests == []


# -- the embedded model --------------------------------------------------------------------------


def test_the_tool_example_calls_computes_and_answers(page: Page, server: FakeServer) -> None:
    page.locator("#examples button").nth(4).click()
    finished(page)
    boxes = page.locator(".tool")
    assert boxes.nth(0).inner_text().split("\n") == [
        "Tool call calculator",
        "expression: 347*285",
    ]
    assert boxes.nth(1).inner_text().split("\n")[-1] == "98895"
    assert answer(page).inner_text() == "347*285 = 98895."
    first, second = server.requests
    assert first["tools"][0]["function"]["name"] == "calculator"
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][1]["tool_calls"] == [
        {
            "id": "call_7",
            "type": "function",
            "function": {"name": "calculator", "arguments": '{"expression": "347*285"}'},
        }
    ]
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "call_7", "content": "98895"}


def test_each_example_starts_a_new_topic_and_a_typed_message_goes_on_with_it(
    page: Page, server: FakeServer
) -> None:
    page.locator("#examples button").nth(0).click()
    finished(page)
    assert not page.locator("#banner").evaluate("banner => banner.open")
    page.click("#banner summary")
    page.locator("#examples button").nth(5).click()
    finished(page, 2)
    assert page.locator(".topic").count() == 1
    assert len(server.requests[1]["messages"]) == 1
    send(page, "and then?")
    finished(page, 3)
    assert len(server.requests[2]["messages"]) == 3
    assert "tools" not in server.requests[2]


RIGHT = {
    "347+285": "632",
    "(1 + 2) * -3": "-9",
    "0.1 + 0.2": "0.3",
    "7/2": "3.5",
    "2*(3+(4-1))/3": "4",
    "- - 5": "5",
    "1 - 2 - 3": "-4",
    "12/3/2": "2",
    ".5*4": "2",
}
WRONG = ["1/0", "2**3", "alert(1)", "1+", "(1", "1.2.3", "", "1 2", "9" * 30, "(" * 300, "1e3"]


def test_the_calculator(page: Page) -> None:
    results = page.evaluate(
        """async (expressions) => {
            const { calculate } = await import("./calculator.js");
            return expressions.map((expression) => {
                try { return String(calculate(expression)); } catch { return "error"; }
            });
        }""",
        [*RIGHT, *WRONG],
    )
    results = dict(zip([*RIGHT, *WRONG], results, strict=True))
    assert results == RIGHT | dict.fromkeys(WRONG, "error")


def test_the_banner_shows_what_fits_and_the_commands(page: Page) -> None:
    assert page.locator(".command code").all_inner_texts() == [
        "fourbee pull Qwen/Qwen3-4B-Instruct-2507",
        "fourbee serve --model Qwen/Qwen3-4B-Instruct-2507",
    ]
    assert page.locator(".fits input:disabled").evaluate_all(
        "nodes => nodes.map(node => node.value)"
    ) == ["Qwen/Qwen3-14B"]
    page.check("input[value='Qwen/Qwen3-0.6B']")
    assert page.locator(".command code").first.inner_text() == "fourbee pull Qwen/Qwen3-0.6B"
    page.click("#banner summary")
    page.reload()
    expect(page.locator("#banner")).to_be_visible()
    assert not page.locator("#banner").evaluate("banner => banner.open"), (
        "a banner the reader closed stays closed"
    )


def test_a_machine_too_small_for_the_4b_is_offered_what_fits(
    open_page: OpenPage, server: FakeServer
) -> None:
    server.memory_bytes = 4_000_000_000
    page = open_page()
    assert page.locator(".command code").first.inner_text() == "fourbee pull Qwen/Qwen3-0.6B"


def test_a_real_model_has_no_banner(open_page: OpenPage, server: FakeServer) -> None:
    server.embedded = False
    page = open_page()
    expect(page.locator("#welcome")).to_have_text("Qwen/Qwen3-4B-Instruct-2507 is ready.")
    assert page.locator("#banner").is_hidden()


# -- languages, themes, access -------------------------------------------------------------------


def test_language_follows_the_browser_and_the_choice_is_kept(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.inner_text("#send") == "发送"
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    page.reload()
    expect(page.locator("#send")).to_have_text("Send")


def test_both_languages_have_the_same_words(page: Page) -> None:
    words = page.evaluate("fetch('words.js').then(response => response.text())")
    tables = re.search(
        r"const WORDS = \{\n  en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},\n\};", words, re.DOTALL
    )
    assert tables
    english, chinese = (re.findall(r"(?:^|[,\s])(\w+): \"", table) for table in tables.groups())
    assert english == chinese
    source = "".join(file.read_text("utf-8") for file in STATIC.glob("*.js"))
    used = set(re.findall(r"word\(\"(\w+)\"", source))
    assert used
    assert used <= set(english)


def test_theme_follows_the_system_and_the_choice_is_kept(open_page: OpenPage) -> None:
    page = open_page(color_scheme="dark")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.click("#theme")
    page.reload()
    assert page.get_attribute("html", "data-theme") == "light"


CONTRAST = """() => {
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = numbers(getComputedStyle(node).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
    };
    const texts = [...document.querySelectorAll("body *")].filter((node) => node.offsetParent !== null && !node.closest("label:has(:disabled)")
        && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
    return texts.map((node) => {
        const pair = [light(numbers(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
        return [(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent.trim().slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_names_and_reduced_motion(open_page: OpenPage, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.click("#settings-button")
    page.locator("#examples button").nth(4).click()
    finished(page)
    send(page, "formatted")
    finished(page, 2)
    send(page, "error frame")
    expect(page.locator("#failure")).to_be_visible()
    page.click("#banner summary")
    assert page.evaluate(CONTRAST) == []
    nameless = page.locator("button:visible, input:visible, textarea:visible").evaluate_all(
        "nodes => nodes.filter(node => !(node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.[0]?.textContent.trim())).map(node => node.outerHTML)"
    )
    assert nameless == []
    send(page, "slow")
    expect(page.locator("#conversation")).to_have_attribute("aria-busy", "true")
    assert (
        page.locator(".waiting .body > p").last.evaluate(
            "node => getComputedStyle(node, '::after').animationName"
        )
        == "none"
    )


def test_a_narrow_screen_never_scrolls_sideways(open_page: OpenPage) -> None:
    page = open_page(viewport={"width": 320, "height": 640})
    for text in ("long word", "formatted", "w" * 500):
        send(page, text)
        expect(page.locator("#send")).to_be_visible()
    page.click("#settings-button")
    page.click("#banner summary")
    sideways = "document.documentElement.scrollWidth <= 320 && document.getElementById('scroller').scrollWidth <= 320"
    assert page.evaluate(sideways)


def test_copy_gives_the_raw_text(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    send(page, "formatted")
    finished(page)
    page.locator(".foot button").click()
    expect(page.locator(".foot button")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("### Carry by carry\n\nAdd from the right, **one digit")
    page.locator(".code button").click()
    expect(page.locator(".code button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("def add(")

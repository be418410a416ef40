#!/usr/bin/env python3
"""The chat page in a browser. Run by hand, not in CI: needs selenium (PyPI), and Debian's chromium and chromium-driver.

    web_page_test.py PROGRAM SCRIPTED_SERVER [--shots FOLDER]

Says "skipped" and exits with 77 where there is no browser. --shots keeps pictures of the page,
light and dark.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import struct
import sys
import tempfile
import time
import unittest
import zlib

try:
    from selenium import webdriver
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select
except ImportError:
    webdriver = None
import serve_harness
from serve_harness import Server

ARGUMENTS = None
HOSTILE = ('<script>window.hit = 1</script> <img src=x onerror="window.hit = 1"> [link](javascript:window.hit=1) '
           '[fine](https://example.org/) `<b>code</b>`\n\n<svg onload="window.hit=1">\n\n| <i>a</i> | b |\n|---|---|\n| <u>c</u> | d |')
RICH = """# A walk in the woods

A **short** list of what to take, with *some* care and `one word` of code:

- water and bread
- a map
  - of the *north* side
  - folded

1. Go out.
2. Come back.

| what | weight |
|---|---:|
| bread | 0.5 kg |
| water | 1.5 kg |

```python
def walk(steps):
    for step in range(steps):
        yield "left" if step % 2 else "right"
```

> The best walk is a slow one. See [the map](https://example.org/map)."""
SCRIPTS = {'': 'Hello! I say what I am told.', 'hostile': HOSTILE, 'rich': RICH,
           'thought': 'First I think: 2 + 3 is 5.\n</think>\n\nThe answer is 5.',
           'tool': 'I look it up.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n'
                   '</parameter>\n</function>\n</tool_call>',
           'endless': {'text': 'on and on\n', 'endless': True}}
TOOLS = [{'type': 'function', 'function': {'name': 'weather', 'parameters': {
    'type': 'object', 'properties': {'city': {'type': 'string'}, 'days': {'type': 'integer'}}}}}]


def red_png(path):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''.join(b'\0' + b'\xc0\x30\x20' * 64 for _ in range(64))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 64, 64, 8, 2, 0, 0, 0)) +
                     chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    return str(path)


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_web_'))
        scripts = cls.folder / 'scripts.json'
        scripts.write_text(json.dumps(SCRIPTS))
        cls.program = (ARGUMENTS.scripted, str(scripts))
        cls.server = Server(program=cls.program)
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium')
        for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1280,860', '--disable-dev-shm-usage'):
            options.add_argument(flag)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        cls.browser = webdriver.Chrome(service=webdriver.ChromeService(shutil.which('chromedriver')), options=options)

    @classmethod
    def tearDownClass(cls):
        cls.browser.quit()
        cls.server.end()
        shutil.rmtree(cls.folder)

    def setUp(self):
        self.open()
        self.browser.execute_script('localStorage.clear(); sessionStorage.clear()')
        self.open()

    def tearDown(self):
        # A message of the policy or an error of a script.
        log = [entry for entry in self.browser.get_log('browser')
               if entry['source'] != 'network' and 'Failed to load resource' not in entry['message']]
        self.assertEqual(log, [])

    def open(self, path='/'):
        self.browser.get('about:blank')
        self.browser.get(f'http://127.0.0.1:{self.server.port}{path}')
        self.until(lambda: self.one('#model').text != '', 'the list of models')

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, what):
        for _ in range(600):
            try:
                if condition():
                    return
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        self.fail(f'not seen: {what}; the page says: {self.one("body").text}')

    def type(self, text):
        self.browser.switch_to.active_element.send_keys(text)

    def say(self, text):
        self.one('#input').send_keys(text, Keys.ENTER)

    def answers(self):
        return self.all('.message.assistant')

    def ended(self, count=1):
        self.until(lambda: len(self.answers()) == count and not self.one('#send').get_attribute('hidden') and self.one('#stop').get_attribute('hidden'),
                   'the end of the answer')

    def shot(self, name):
        if ARGUMENTS.shots:
            os.makedirs(ARGUMENTS.shots, exist_ok=True)
            for scheme in ('dark', 'light'):
                self.scheme(scheme)
                self.browser.save_screenshot(os.path.join(ARGUMENTS.shots, f'{name}-{scheme}.png'))

    def scheme(self, value):
        self.browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': value}]})

    def test_an_answer_is_shown_kept_and_made_again(self):
        self.shot('welcome')
        self.say('Say something')
        self.ended()
        self.assertIn('Hello! I say what I am told.', self.answers()[0].text)
        self.assertIn('tokens', self.one('.message.assistant .note').text)
        self.assertIn('Hello! I say', self.one('#live').get_attribute('textContent'))
        self.open()
        self.one('#conversations .quiet').click()
        self.assertIn('Hello! I say', self.answers()[0].text)
        self.one('.message.assistant button[aria-label="Regenerate the answer"]').click()
        self.ended()
        self.one('.message.user button[aria-label="Edit the message"]').click()
        self.type(Keys.CONTROL + 'a')
        self.type(Keys.NULL)
        self.type('[[thought]]')
        self.type(Keys.ENTER)
        self.ended()
        self.assertIn('The answer is 5.', self.answers()[0].text)
        self.assertEqual(len(self.all('.message')), 2)
        self.assertEqual(len(self.all('#conversations li')), 1)

    def test_thinking_is_folded_and_calls_are_shown(self):
        self.one('#open-settings').click()
        Select(self.one('#set-thinking')).select_by_value('on')
        self.one('#settings .primary').click()
        self.say('[[thought]]')
        self.ended()
        details = self.one('.assistant .thinking')
        self.assertRegex(details.text, r'Thought for [\d.]+ s')
        self.assertFalse(details.get_attribute('open'))
        details.find_element(By.TAG_NAME, 'summary').click()
        self.assertIn('First I think', details.text)
        self.one('#open-settings').click()
        self.one('#set-tools').send_keys('[1')
        self.until(lambda: 'left out' in self.one('#tools-fault').text, 'the fault of the tools')
        self.one('#set-tools').clear()
        self.one('#set-tools').send_keys(json.dumps(TOOLS))
        self.shot('settings')
        self.one('#settings .primary').click()
        self.say('[[tool]]')
        self.ended(2)
        self.assertEqual(self.one('.call h3').text, 'Calls weather')
        self.assertEqual(json.loads(self.one('.call pre').text), {'city': 'Paris', 'days': 3})
        self.shot('calls')
        next(b for b in self.all('.message.assistant button') if b.text == 'Give results').click()
        self.one('.message textarea').send_keys('{"sky": "[[thought]]"}')
        self.one('.message form .primary').click()
        self.ended(3)
        self.assertEqual(self.one('.message.tool h3').text, 'Result of weather')
        self.assertEqual(json.loads(self.one('.message.tool pre').text), {'sky': '[[thought]]'})
        self.assertIn('The answer is 5.', self.answers()[-1].text)  # the model saw it
        self.shot('results')

    def test_hostile_markdown_is_text(self):
        self.say('[[hostile]]')
        self.ended()
        self.assertIsNone(self.browser.execute_script('return window.hit ?? null'))
        self.assertEqual(self.all('.message script, .message img, .message svg, .prose i, .prose u, .prose b'), [])
        self.assertEqual([a.get_attribute('href') for a in self.all('.message a')], ['https://example.org/'])
        self.assertIn('<script>window.hit = 1</script> <img src=x', self.answers()[0].text)
        # The policy holds where the page would fail: a script in the text of the page does not run.
        broken = self.browser.execute_async_script("""
            const done = arguments[arguments.length - 1];
            document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective), {once: true});
            document.body.insertAdjacentHTML('beforeend', '<img src="data:," onerror="window.hit = 2">');""")
        self.assertEqual(broken, 'script-src-attr')
        self.assertIsNone(self.browser.execute_script('return window.hit ?? null'))
        self.browser.get_log('browser')  # which says so

    def test_markdown_in_light_dark_and_on_a_phone(self):
        self.say('Give me something to look at, please: a list, a table and some code. [[rich]]')
        self.ended()
        for selector in ('h3', 'ul ul', 'ol', 'table', '.codeblock pre', 'blockquote a'):
            self.assertEqual(len(self.all('.prose ' + selector)), 1, selector)
        ground = {}
        for scheme in ('light', 'dark'):
            self.scheme(scheme)
            ground[scheme] = self.browser.execute_script('return getComputedStyle(document.body).backgroundColor')
        self.shot('markdown')
        self.assertNotEqual(ground['light'], ground['dark'])
        self.one('#theme').click()  # from automatic to light, whatever the system says
        self.assertEqual(self.browser.execute_script('return getComputedStyle(document.body).backgroundColor'), ground['light'])
        self.one('#theme').click()
        self.scheme('light')
        self.assertEqual(self.browser.execute_script('return getComputedStyle(document.body).backgroundColor'), ground['dark'])
        self.one('#theme').click()
        self.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {'width': 390, 'height': 780, 'deviceScaleFactor': 2, 'mobile': True})
        try:
            self.assertLessEqual(self.browser.execute_script('return document.documentElement.scrollWidth'), 390)
            self.shot('phone')
            self.one('#menu').click()
            self.assertTrue(self.one('#new-chat').is_displayed())
            self.shot('phone-list')
        finally:
            self.browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})

    def test_an_answer_is_stopped(self):
        os.kill(self.server.process.pid, signal.SIGSTOP)  # so that it does not end by itself
        try:
            self.say('[[endless]]')
            self.until(lambda: self.one('#stop').is_displayed(), 'that the answer is made')
            self.one('#input').send_keys(Keys.ESCAPE)
            self.ended()
            self.until(lambda: 'stopped' in self.answers()[0].text, 'that it was stopped')
        finally:
            os.kill(self.server.process.pid, signal.SIGCONT)
        self.until(lambda: self.server.metric('vllm:num_requests_running') == 0, 'the end of the request on the server')
        self.one('.message.assistant button[aria-label="Regenerate the answer"]').click()
        self.ended()
        self.assertIn('on and on', self.answers()[0].text)

    def test_the_live_view(self):
        self.open('/#status')
        self.until(lambda: 'Slots' in self.one('#facts').text, 'numbers')
        self.say('[[endless]]')
        self.until(lambda: self.one('.chart strong').text not in ('0', ''), 'tokens per second')
        self.shot('status')
        self.ended()
        self.one('#input').send_keys(Keys.ESCAPE)
        self.assertFalse(self.one('#status').is_displayed())
        self.one('#open-status').click()
        self.assertTrue(self.one('#status').is_displayed())

    def test_a_picture_is_refused_by_a_model_of_text(self):
        self.one('#attach-file').send_keys(red_png(self.folder / 'red.png'))
        self.until(lambda: len(self.all('#attached img')) == 1, 'the attached picture')
        self.say('What is this?')
        self.ended()
        self.assertEqual(len(self.all('.message.user img')), 1)
        self.until(lambda: self.one('.message.assistant .fault').text, 'the refusal of a model without pictures')
        self.shot('refused')

    def test_a_picture_is_answered(self):
        images = serve_harness.ROOT / 'demo' / 'demo-qwen3_5' / 'images'
        case = json.loads((images / 'expected.json').read_text())['cases'][0]
        server = Server()  # the demo model, which sees
        try:
            self.browser.get(f'http://127.0.0.1:{server.port}/')
            self.until(lambda: self.one('#model').text == serve_harness.MODEL, 'the model')
            self.one('#open-settings').click()
            self.one('#set-temperature').send_keys('0')
            self.one('#settings .primary').click()
            self.one('#attach-file').send_keys(str(images / case['file']))
            self.until(lambda: len(self.all('#attached img')) == 1, 'the attached picture')
            self.say(case['question'])
            self.ended()
            self.assertEqual(self.one('.message.assistant > .prose').text, case['output'])
            shown = 'return arguments[0].complete && arguments[0].naturalWidth'
            self.assertEqual(self.browser.execute_script(shown, self.one('.message.user img')), case['width'])
            self.shot('picture')
        finally:
            server.end()

    def test_the_server_goes_away_and_comes_back(self):
        def start(port=0):
            return Server(program=self.program, port=port, longest=serve_harness.LONGEST)  # whose endless answers last
        self.server = start()
        try:
            self.open()
            # It runs in slices, and not while the page is looked at, so that its answer is not at its end when it is killed.
            os.kill(self.server.process.pid, signal.SIGSTOP)
            self.say('[[endless]]')

            def begun():
                os.kill(self.server.process.pid, signal.SIGCONT)
                time.sleep(0.01)
                os.kill(self.server.process.pid, signal.SIGSTOP)
                time.sleep(0.2)
                return 'on and on' in self.answers()[0].text
            self.until(begun, 'the answer')
            self.server.process.kill()
            self.server.end()
            self.until(lambda: 'does not answer' in self.one('#banner').text, 'that the server is away')
            self.until(lambda: 'cut off' in self.answers()[0].text, 'that the answer is broken')
            self.shot('away')
            self.server = start(self.server.port)
            self.until(lambda: 'is back' in self.one('#banner').text, 'that the server is back')
            before = len(self.answers()[0].text)
            self.one('.message.assistant button[aria-label="Continue the answer"]').click()
            self.until(lambda: len(self.answers()[0].text) > before + 100, 'that it goes on')
            self.one('#input').send_keys(Keys.ESCAPE)
            self.ended()
            self.assertFalse(self.one('.message.assistant .fault').is_displayed(), self.answers()[0].text[-300:])
        finally:
            self.server.end()

    def test_keys_alone(self):
        self.assertEqual(self.browser.switch_to.active_element.get_attribute('id'), 'input')
        self.type('one')
        self.type(Keys.SHIFT + Keys.ENTER)
        self.type(Keys.NULL)
        self.type('two')
        self.type(Keys.ENTER)
        self.ended()
        self.assertEqual(self.one('.message.user .bubble').text, 'one\ntwo')
        self.type(Keys.ALT + 'n')
        self.type(Keys.NULL)
        self.assertEqual(self.all('.message'), [])
        self.type(Keys.ALT + Keys.ARROW_DOWN)
        self.type(Keys.NULL)
        self.assertEqual(len(self.all('.message')), 2)
        self.type(Keys.ALT + 'e')
        self.type(Keys.NULL)
        self.type('!')
        self.type(Keys.ENTER)
        self.ended()
        self.assertEqual(self.one('.message.user .bubble').text, 'one\ntwo!')
        self.type(Keys.ALT + 'r')
        self.type(Keys.NULL)
        self.ended()
        self.type(Keys.ALT + 's')
        self.type(Keys.NULL)
        self.assertTrue(self.one('#settings').is_displayed())
        self.type(Keys.ESCAPE)
        self.assertFalse(self.one('#settings').is_displayed())
        # Each control is reached by Tab, and is seen when it is.
        reached = set()
        for _ in range(60):
            self.type(Keys.TAB)
            active = self.browser.switch_to.active_element
            reached.add(active.get_attribute('id') or active.text)
        for name in ('input', 'attach', 'send', 'model', 'open-settings', 'new-chat', 'export', 'Copy', 'Edit', 'Regenerate'):
            self.assertIn(name, reached)

    def test_the_key_is_asked_for_and_sent(self):
        server = Server('--api-key', 'secret', program=self.program)
        try:
            self.browser.get(f'http://127.0.0.1:{server.port}/')
            self.until(lambda: 'API key' in self.one('#banner').text, 'that a key is needed')
            self.one('#banner button').click()
            self.assertEqual(self.browser.switch_to.active_element.get_attribute('id'), 'set-key')
            self.type('secret')
            self.type(Keys.TAB)
            self.until(lambda: self.one('#model').text != '', 'the list of models')
            self.one('#settings .primary').click()
            self.say('Hello')
            self.ended()
            self.assertIn('I say what I am told', self.answers()[0].text)
        finally:
            server.end()

    def test_conversations_are_exported_imported_and_deleted(self):
        self.say('First')
        self.ended()
        text = self.browser.execute_async_script(
            "const done = arguments[0]; import('/web/store.js').then((store) => done(store.exported()))")
        file = self.folder / 'conversations.json'
        file.write_text(text)
        self.one('#import-file').send_keys(str(file))
        self.until(lambda: len(self.all('#conversations li')) == 2, 'the imported conversation')
        file.write_text('{"format": "other"}')
        self.one('#import-file').send_keys(str(file))
        self.until(lambda: 'no file of exported' in self.one('#banner').text, 'the fault')
        for left in (1, 0):
            remove = self.one('#conversations .icon')
            self.browser.execute_script('arguments[0].focus()', remove)
            remove.send_keys(Keys.ENTER)
            self.browser.switch_to.alert.accept()
            self.until(lambda left=left: len(self.all('#conversations li')) == left, 'that it is gone')


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('program')
    parser.add_argument('scripted')
    parser.add_argument('--shots')
    ARGUMENTS, rest = parser.parse_known_args()
    if webdriver is None or not shutil.which('chromium') or not shutil.which('chromedriver'):
        print('skipped: selenium, chromium or chromedriver is missing')
        sys.exit(77)
    serve_harness.PROGRAM = ARGUMENTS.program
    unittest.main(argv=[sys.argv[0], *rest])

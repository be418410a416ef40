#!/usr/bin/env python3
"""The chat page as `calandra serve` gives it: headers, keys, the flag; and its files: ids, imports, brackets, the Markdown cases.

    web_files_test.py PROGRAM

The page in a browser is tested by web_page_test.py, by hand. Where there is node, it parses the scripts and runs the Markdown cases.
"""
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gtest_report
import serve_harness
from serve_harness import ROOT, Server

WEB = ROOT / 'web'
SCRIPTS = sorted(WEB.glob('*.js'))
NODE = shutil.which('node')

# Text of an answer, and what the page makes of it.
MARKDOWN = [
    ('a **b** *c* `d*` ~~e~~', '<p>a <strong>b</strong> <em>c</em> <code>d*</code> <del>e</del></p>'),
    ('# T ##\ntext', '<h1>T</h1><p>text</p>'),
    ('one\ntwo\n\nthree', '<p>one<br>two</p><p>three</p>'),
    ('- a\n- b\n  - c\n- d', '<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>'),
    ('3. a\n4. b', '<ol start=3><li>a</li><li>b</li></ol>'),
    ('- a\n\n- b\n\nc', '<ul><li>a</li><li>b</li></ul><p>c</p>'),
    ('```py\nx < 1\n```\ny', '<pre>x &lt; 1</pre><p>y</p>'),
    ('```\nnot yet closed', '<pre>not yet closed</pre>'),
    ('|a|b|\n|-|-:|\n|1|`x`|', '<table><thead><tr><th>a</th><th>b</th></tr></thead>'
     '<tbody><tr><td>1</td><td><code>x</code></td></tr></tbody></table>'),
    ('> q\n> r', '<blockquote><p>q<br>r</p></blockquote>'),
    ('2 * 3 * 4 snake_case_name \\*', '<p>2 * 3 * 4 snake_case_name *</p>'),
    ('---', '<hr>'),
    ('see https://a.b/c.', '<p>see <a href=https://a.b/c>https://a.b/c</a>.</p>'),
    ('[x](https://a.b/c)', '<p><a href=https://a.b/c>x</a></p>'),
    # What must stay text.
    ('<script>alert(1)</script>', '<p>&lt;script>alert(1)&lt;/script></p>'),
    ('<img src=x onerror=alert(1)>', '<p>&lt;img src=x onerror=alert(1)></p>'),
    ('[x](javascript:alert(1))', '<p>[x](javascript:alert(1))</p>'),
    ('[x]( JaVaScRiPt:alert(1))', '<p>[x]( JaVaScRiPt:alert(1))</p>'),
    ('[x](data:text/html,a)', '<p>[x](data:text/html,a)</p>'),
    ('![x](vbscript:a)', '<p>![x](vbscript:a)</p>'),
    ('`<b>` ```<i>```', '<p><code>&lt;b></code> <code>&lt;i></code></p>'),
]
# Each, many times, must not take longer than a text of its length may.
TIRESOME = ['[', '*', '**a', '`', '![a](', '_a', '> ', '- ', '|', 'https://', '# #', '\\', '# a' + ' ' * 50, '`a``']

RUN = '''
import {parse} from './markdown.js';
import {readFileSync} from 'node:fs';
const {cases, tiresome} = JSON.parse(readFileSync(0));
const html = (n) => typeof n === 'string' ? n.replaceAll('<', '&lt;')
    : '<' + n.tag + (n.href ? ' href=' + n.href : '') + (n.start ? ' start=' + n.start : '') + '>' + n.children.map(html).join('')
      + (['br', 'hr'].includes(n.tag) ? '' : '</' + n.tag + '>');
for (const text of tiresome) parse(text.repeat(10000));
console.log(JSON.stringify(cases.map((text) => parse(text).map(html).join(''))));
'''


def closing_fault(text):
    """What is wrong with the brackets and quotes of a script, or ''. Knows strings, templates, comments and regular expressions."""
    open_at, i, last = [], 0, ''
    pairs = {')': '(', ']': '[', '}': '{', '`': '`'}
    while i < len(text):
        c = text[i]
        if open_at and open_at[-1] == '`':  # in a template
            if c == '\\':
                i += 1
            elif c == '`':
                open_at.pop()
            elif text.startswith('${', i):
                open_at.append('{')
                i += 1
        elif text.startswith('//', i):
            i = text.find('\n', i)
            if i < 0:
                break
        elif c in '\'"':
            end = re.compile(r'(?:[^\\\n' + c + r']|\\.)*' + c).match(text, i + 1)
            if not end:
                return f'a string does not end: {text[i:i + 40]}'
            i = end.end() - 1
        elif c == '/' and (last in '(,=:[!&|?{};' or not last):
            end = re.compile(r'(?:[^\\\n/\[]|\\.|\[(?:[^\\\]\n]|\\.)*\])+/').match(text, i + 1)
            if not end:
                return f'a regular expression does not end: {text[i:i + 40]}'
            i = end.end() - 1
        elif c in '([{`':
            open_at.append(c)
        elif c in ')]}':
            if not open_at or open_at.pop() != pairs[c]:
                return f'{c} closes nothing: {text[max(0, i - 40):i + 1]}'
        if not c.isspace():
            last = c
        i += 1
    return f'not closed: {open_at}' if open_at else ''


class Served(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('--api-key', 'secret')

    @classmethod
    def tearDownClass(cls):
        cls.server.end()

    def test_every_file_comes_as_it_is_with_its_headers_and_without_a_key(self):
        types = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript'}
        for file in sorted(WEB.iterdir()):
            path = '/' if file.name == 'index.html' else '/web/' + file.name
            status, headers, body = self.server.ask(path)
            self.assertEqual((status, body), (200, file.read_bytes()), path)
            self.assertEqual(headers['Content-Type'], types[file.suffix] + '; charset=utf-8', path)
            self.assertEqual(headers['X-Content-Type-Options'], 'nosniff')
            self.assertEqual(headers['Cache-Control'], 'no-cache')
            policy = dict(rule.strip().split(' ', 1) for rule in headers['Content-Security-Policy'].split(';'))
            self.assertEqual(policy['default-src'], "'none'")
            self.assertEqual(policy['script-src'], "'self'")
            self.assertEqual(policy['style-src'], "'self'")
            self.assertEqual(policy['connect-src'], "'self'")
            self.assertNotIn('unsafe', headers['Content-Security-Policy'])

    def test_a_known_file_is_not_sent_again(self):
        tag = self.server.ask('/')[1]['ETag']
        self.assertRegex(tag, r'^"[0-9a-f]{16}"$')
        for known in (tag, '"other", W/' + tag, '*'):
            status, headers, body = self.server.ask('/', headers={'If-None-Match': known})
            self.assertEqual((status, headers['ETag'], body), (304, tag, b''), known)
        self.assertEqual(self.server.ask('/', headers={'If-None-Match': '"other"'})[0], 200)
        self.assertNotEqual(self.server.ask('/web/app.js')[1]['ETag'], tag)

    def test_head_tells_the_length_alone_and_nothing_is_posted(self):
        status, headers, body = self.server.ask('/', method='HEAD')
        self.assertEqual((status, body), (200, b''))
        self.assertEqual(int(headers['Content-Length']), (WEB / 'index.html').stat().st_size)
        status, headers, _ = self.server.ask('/', {})
        self.assertEqual((status, headers['Allow']), (405, 'GET, HEAD'))

    def test_what_is_behind_the_page_needs_the_key(self):
        for path in ('/v1/models', '/web/', '/web/other.js', '/web/../v1/models'):
            self.assertEqual(self.server.ask(path)[0], 401, path)
        self.assertEqual(self.server.ask('/v1/models', headers={'Authorization': 'Bearer secret'})[0], 200)

    def test_the_live_view_finds_its_metrics(self):
        text = self.server.ask('/metrics')[2].decode()
        asked = set(re.findall(r"'((?:vllm|calandra):\w+)'", (WEB / 'status.js').read_text()))
        self.assertGreater(len(asked), 8)
        for name in asked:
            self.assertIn(f'# TYPE {name} ', text)


class WithoutPage(unittest.TestCase):
    def test_the_flag_leaves_it_out(self):
        server = Server('--disable-web-page')
        try:
            self.assertEqual(server.ask('/')[0], 404)
            self.assertEqual(server.ask('/web/app.js')[0], 404)
            self.assertEqual(server.ask('/health')[0], 200)
        finally:
            server.end()


class Files(unittest.TestCase):
    html = (WEB / 'index.html').read_text()

    def test_every_id_that_a_script_uses_exists_once(self):
        ids = re.findall(r'\bid="([^"]+)"', self.html)
        self.assertEqual(len(ids), len(set(ids)))
        used = set()
        for script in SCRIPTS:
            text = script.read_text()
            used |= set(re.findall(r"(?:\$|getElementById)\('([^']+)'\)", text))
            used |= {'i-' + name for name in re.findall(r"\bicon\('([^']+)'\)", text)}
        settings = (WEB / 'settings.js').read_text()
        used |= {'set-' + name for line in re.findall(r'(?:NUMBERS|TEXTS) = \[(.*?)\]', settings) for name in re.findall(r"'(\w+)'", line)}
        used |= {'set-' + name for name in re.findall(r"\bfield\('(\w+)'\)", settings)}
        app = (WEB / 'app.js').read_text()
        used |= set(re.findall(r"'([\w-]+)':", app[app.index('const clicks'):app.index('Object.entries(clicks)')]))
        used |= set(re.findall(r'href="#([^"]+)"', self.html)) | set(re.findall(r'aria-(?:controls|labelledby)="([^"]+)"', self.html))
        self.assertGreater(len(used), 40)
        self.assertEqual(used - set(ids), set())

    def test_nothing_is_inline_and_nothing_comes_from_elsewhere(self):
        self.assertNotRegex(self.html, r'<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)')
        for address in re.findall(r'(?:src|href)="([^"]+)"', self.html):
            self.assertRegex(address, r'^(/web/|#|data:image/svg)')
        self.assertNotRegex((WEB / 'style.css').read_text(), r'url\(|@import')
        for script in SCRIPTS:
            self.assertNotRegex(script.read_text(), r'innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function', script.name)

    def test_scripts_close_what_they_open_and_import_what_exists(self):
        for script in SCRIPTS:
            text = script.read_text()
            self.assertEqual(closing_fault(text), '', script.name)
            for names, file in re.findall(r"import \{([^}]*)\} from '\./([\w.]+)'", text):
                for name in names.split(','):
                    exports = (WEB / file).read_text()
                    self.assertRegex(exports, r'export (async )?(function|const|class) ' + name.strip() + r'\b', script.name)
            for alias, file in re.findall(r"import \* as (\w+) from '\./([\w.]+)'", text):
                for name in set(re.findall(r'(?<![\w./])' + alias + r'\.(\w+)', text)):
                    self.assertRegex((WEB / file).read_text(), r'export (async )?(function|const|class) ' + name + r'\b', script.name)

    @unittest.skipUnless(NODE, 'there is no node')
    def test_node_parses_the_scripts(self):
        with tempfile.TemporaryDirectory() as folder:
            for script in SCRIPTS:
                copy = Path(folder) / (script.stem + '.mjs')
                copy.write_bytes(script.read_bytes())
                run = subprocess.run([NODE, '--check', copy], capture_output=True, text=True, timeout=60)
                self.assertEqual(run.returncode, 0, run.stderr)

    @unittest.skipUnless(NODE, 'there is no node')
    def test_markdown(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / 'package.json').write_text('{"type": "module"}')
            shutil.copy(WEB / 'markdown.js', folder)
            (Path(folder) / 'run.js').write_text(RUN)
            given = json.dumps({'cases': [text for text, _ in MARKDOWN], 'tiresome': TIRESOME})
            run = subprocess.run([NODE, 'run.js'], cwd=folder, input=given, capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 0, run.stderr)
            for (text, want), got in zip(MARKDOWN, json.loads(run.stdout)):
                self.assertEqual(got, want, text)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    sys.exit(gtest_report.main())

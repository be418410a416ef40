#!/usr/bin/env python3
"""The command line as people and scripts meet it: chat, from a pipe and on a terminal.

    cli_chat_test.py PROGRAM
"""
import json
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import termios
import time

from cli_harness import ENVIRONMENT, GREEDY, ROOT, CliCase, Program, main


class CliChat(CliCase):
    # chat

    def test_chat_from_a_pipe(self):
        saved = str(self.folder / 'saved')
        self.ok('chat', *GREEDY, stdin=f'hi\n/save {saved}\n')
        self.assertEqual([m['role'] for m in json.loads(pathlib.Path(saved).read_text())], ['user', 'assistant'])
        self.fails(1, 'cannot write /dev/full', 'chat', *GREEDY, stdin='/save /dev/full\n')
        self.fails(1, 'no command /foo', 'chat', *GREEDY, stdin='/foo\n')
        for line, form in (('/image', '/image FILE'), ('/save', '/save FILE'), ('/think', '/think on or /think off'), ('/think maybe', '/think on'),
                           ('/reset now', 'without more')):
            self.fails(1, f'{line.split()[0]} is used as {form}' if form[0] == '/' else form, 'chat', *GREEDY, stdin=line + '\n')
        self.fails(1, 'cannot read', 'chat', *GREEDY, stdin='/image /nowhere\n')

    def test_chat_shows_where_thoughts_begin(self):
        shown = self.ok('chat', '--temperature', '0', '--max-tokens', '40', stdin='/think on\nHi there\n')
        self.assertTrue(shown.startswith('<think>\n'), shown)
        self.assertEqual((shown.count('<think>'), shown.count('</think>')), (1, 1))
        self.assertNotIn('think>', self.ok('chat', '--temperature', '0', '--max-tokens', '40', stdin='/think off\nHi there\n'))

    def test_a_saved_conversation_is_the_same_again(self):
        for model, lines, thinks in ('demo:qwen3_5', '/think on\nHi there\n', True), ('demo:qwen3_5', 'Hi there\n', False), (
                'demo:bailing', 'Hi there\n', False):
            saved = self.folder / 'talk'
            shown = self.ok('chat', model, '--temperature', '0', '--max-tokens', '200', stdin=lines + f'/save {saved}\n')
            user, answer = json.loads(saved.read_text())
            self.assertEqual('reasoning_content' in answer, thinks, answer)
            self.assertNotIn('think>', answer['content'])
            text = answer['content'] if not thinks else f"<think>\n{answer['reasoning_content']}</think>{answer['content']}"
            self.assertEqual(shown, f'{text}\n2 messages written to {saved}\n')
            # What the next turn of the chat begins with.
            prompt = self.ok('render', model, '--messages', str(saved))
            self.assertIn(answer['content'].strip(), prompt)
            if thinks:
                self.assertIn(f"<think>\n{answer['reasoning_content'].strip()}\n</think>\n\n{answer['content'].strip()}<|im_end|>", prompt)

    def test_chat_keeps_its_conversation_warm(self):
        picture = str(ROOT / 'demo' / 'demo-qwen3_5' / 'images' / 'shapes_1.png')
        mtp = '--speculative-config', '{"method": "mtp", "num_speculative_tokens": 2, "adaptive": false}'
        for model, first in ('demo:qwen3_5', 'hi'), ('demo:bailing', 'hi'), ('demo:qwen3_5', f'/image {picture}\nWhat is this?'):
            talk = f'{first}\nWhat is 2 + 3?\nAnd now?\n'
            flags = 'chat', model, '--temperature', '0', '--max-tokens', '8'
            warm = self.run_program(*flags, '--verbose', stdin=talk)
            cached = [int(line.split('(')[1].split()[0]) for line in warm.err.splitlines() if ' cached)' in line]
            prompts = [int(line.split('prompt ')[1].split()[0]) for line in warm.err.splitlines() if ' cached)' in line]
            self.assertEqual(cached[0], 0)
            for turn in 1, 2:
                self.assertGreaterEqual(cached[turn], prompts[turn - 1] - 8, warm.err)
            for other in ('--no-enable-prefix-caching',), mtp:
                self.assertEqual(self.ok(*flags, *other, stdin=talk), warm.out)
        pictures = [ROOT / 'demo' / 'demo-qwen3_5' / 'images' / f'shapes_{i}.png' for i in (1, 3)]  # of one size
        talks = [f'/image {picture}\nWhat is in this picture?\n' for picture in pictures]
        answers = [self.ok('chat', '--temperature', '0', '--max-tokens', '20', stdin=talk) for talk in talks]
        self.assertNotEqual(*answers)
        self.assertEqual(self.ok('chat', '--temperature', '0', '--max-tokens', '20', stdin='/reset\n'.join(talks)), ''.join(answers))

    def test_ctrl_c_while_the_prompt_is_read(self):
        chat = subprocess.Popen([Program.path, 'chat', *GREEDY, '--max-num-batched-tokens', '1', '--max-model-len', '32768'],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
        self.addCleanup(lambda: (chat.kill(), chat.communicate()))
        def say(line):
            chat.stdin.write(line.encode() + b'\n')
            chat.stdin.flush()
        say('hi')
        self.assertNotEqual(chat.stdout.readline(), b'', 'now it takes signals')
        say('word ' * 20000)
        end = time.monotonic() + 50
        while not select.select([chat.stdout], [], [], 0.05)[0]:
            self.assertLess(time.monotonic(), end)
            chat.send_signal(signal.SIGINT)
        self.assertEqual(chat.stdout.readline(), b' [stopped]\n')
        saved = self.folder / 'saved'
        say(f'/save {saved}')
        self.assertEqual((*chat.communicate(), chat.returncode), (f'2 messages written to {saved}\n'.encode(), b'', 0))

    def read_terminal(self, terminal, until):
        """What is shown until a condition on it holds or the program ends."""
        shown, end = b'', time.monotonic() + 50
        while not until(shown):
            self.assertLess(time.monotonic(), end, shown)
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    piece = os.read(terminal, 4096)
                except OSError:
                    piece = b''
                if not piece:
                    break
                shown += piece
        return shown

    def chat_on_terminal(self, *lines):
        """A chat that waits at its prompt after these lines: process and terminal."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(Program.path, [Program.path, 'chat', str(ROOT / 'demo' / 'demo-qwen3_5') + '/', *GREEDY], {**ENVIRONMENT, 'LC_ALL': 'C', 'TERM': 'dumb'})
        self.addCleanup(os.close, terminal)
        at_prompt = lambda shown: b'\r\n> ' in shown and not termios.tcgetattr(terminal)[3] & termios.ICANON
        try:
            shown = self.read_terminal(terminal, at_prompt)
            self.assertIn(b'Talking to ' + str(ROOT).encode(), shown)
            for line in lines:
                os.write(terminal, line.encode() + b'\n')
                self.read_terminal(terminal, at_prompt)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        return pid, terminal

    def test_chat_on_a_terminal(self):
        saved = self.folder / 'saved'
        pid, terminal = self.chat_on_terminal('größe 日本', f'/save {saved}')
        os.write(terminal, b'\x04')
        shown = self.read_terminal(terminal, lambda shown: False)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertTrue(shown.endswith(b'\r\n'), shown)
        self.assertEqual(json.loads(saved.read_text())[0]['content'], 'größe 日本')

    def test_a_signal_restores_the_terminal(self):
        pid, terminal = self.chat_on_terminal()
        os.kill(pid, signal.SIGTERM)
        self.assertEqual(os.waitpid(pid, 0)[1], signal.SIGTERM)
        self.assertTrue(termios.tcgetattr(terminal)[3] & termios.ICANON)


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""The command line as people and scripts meet it: exit statuses, messages, odd streams, words, --config, rows, the terminal.

    cli_test.py PROGRAM

Runs the built program on the demo models. With GTEST_OUTPUT=xml:FOLDER/ the cases are written there as GoogleTest does.
"""
import json
import os
import pathlib
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ''
ENVIRONMENT = {**os.environ, 'CALANDRA_DEMO_DIR': str(ROOT / 'demo'), 'CALANDRA_THREADS': '1', 'CALANDRA_BACKEND': 'cpu'}
GREEDY = ('--temperature', '0', '--max-tokens', '3')
LIMITS = ('--max-model-len', '--num-gpu-blocks-override', '--num-state-slots', '--max-num-seqs', '--max-num-batched-tokens')


class Cli(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_cli_'))
        self.addCleanup(shutil.rmtree, self.folder)

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run_program(self, *args, stdin='', **more):
        more = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'env': ENVIRONMENT, 'timeout': 60, **more}
        if 'preexec_fn' not in more and not isinstance(stdin, str):
            more['stdin'] = stdin
        else:
            more['input'] = stdin.encode()
        done = subprocess.run([PROGRAM, *args], **more)
        done.out, done.err = (done.stdout or b'').decode(), (done.stderr or b'').decode()
        return done

    def ok(self, *args, **more):
        done = self.run_program(*args, **more)
        self.assertEqual(done.returncode, 0, f'{args}: {done.err}')
        return done.out

    def fails(self, status, words, *args, **more):
        """The last line on standard error is one error that holds the words."""
        done = self.run_program(*args, **more)
        self.assertEqual(done.returncode, status, f'{args}: {done.err}')
        last = (done.err.splitlines() or [''])[-1]
        self.assertTrue(last.startswith('calandra: error: '), f'{args}: {done.err}')
        for word in words if isinstance(words, tuple) else (words,):
            self.assertIn(word, last, args)
        return done

    # verbs and help

    def test_help_and_version(self):
        for args in ('--help',), ('help',), ('bench', '--help'), ('help', 'bench', 'ops'), ('generate', '--help'):
            self.assertIn('Usage: calandra', self.ok(*args))
        self.assertEqual(self.ok('--version'), self.ok('version'))
        self.assertIn('demo:bailing', self.ok('help', 'chat'))
        self.assertEqual(self.run_program().returncode, 2)

    def test_unknown_verbs_and_flags(self):
        self.fails(2, ('no verb foo', 'generate'), 'foo')
        self.fails(2, ('bench needs a verb', 'latency, ops'), 'bench')
        self.fails(2, ('no flag --foo',), 'generate', '--foo', 'hi')
        self.fails(2, '--seed needs a value', 'generate', 'hi', '--seed')
        self.fails(2, '--raw is a flag', 'generate', '--system', '--raw', 'hi')
        self.fails(2, '--input is required', 'logits')

    # flag values

    def test_wrong_values_name_their_flag(self):
        for flag, value in (('--temperature', '-1'), ('--temperature', '1' + 309 * '0'), ('--temperature', 'nan'),
                            ('--top-p', '0'), ('--top-k', '-2'), ('--seed', '-1'), ('--seed', '7' * 309),
                            ('--max-tokens', '0'), ('--max-tokens', '-1'), ('--threads', '0x10'), ('--n', '0'),
                            ('--dtype', 'int4'), ('--backend', 'tpu'), ('--logit-bias', '{'), ('--logit-bias', '[1]'),
                            ('--logit-bias', '{"a": 1}'), ('--hf-overrides', '3'), ('--chat-template-kwargs', 'x'),
                            ('--allowed-token-ids', '1,,2'), ('--stop-token-ids', 'a'), ('--prompt-ids', '1 2')):
            done = self.fails(2, flag, 'generate', 'hi', flag, value)
            self.assertEqual(len(done.err.splitlines()), 1, 'nothing was loaded before')
            self.assertLess(len(done.err), 400)

    def test_empty_values_are_refused(self):
        for flag in '--stop', '--system', '--file', '--seed', '--config', '--image':
            self.fails(2, flag + ': the value is empty', 'generate', 'hi', flag, '')
            self.fails(2, flag + ': the value is empty', 'generate', 'hi', flag + '=')

    def test_flags_without_effect_are_refused(self):
        self.fails(2, '--logprobs needs --json', 'generate', 'hi', '--logprobs', '1')
        self.fails(2, '--video-fps needs --video', 'generate', 'hi', '--video-fps', '1')
        self.fails(2, 'chat template', 'generate', '--raw', 'hi', '--no-thinking')
        self.fails(2, '--load-format dummy', 'bench', 'latency', '--shape', 'qwen3_5-0.8b')
        self.fails(2, '--chunk', 'logits', '--input', 'a', '--output', 'b', '--chunk', '1', '--max-num-batched-tokens', '1')
        self.fails(2, '--seed is given twice', 'generate', 'hi', '--seed', '1', '--seed', '1')

    def test_values_that_do_not_suit_the_model(self):
        self.fails(1, ('--allowed-token-ids', '999999'), 'generate', 'hi', '--allowed-token-ids', '999999')
        model = self.folder / 'model'
        shutil.copytree(ROOT / 'demo' / 'demo-qwen3_5', model)
        (model / 'generation_config.json').write_text('{"top_p": 7}')
        self.fails(1, ('generation_config.json', 'top_p'), 'generate', str(model), 'hi')
        self.ok('generate', str(model), 'hi', '--top-p', '0.5', '--max-tokens', '1')
        (model / 'generation_config.json').write_text('{"eos_token_id": -1}')
        self.fails(1, ('generation_config.json', 'eos_token_id'), 'generate', str(model), 'hi')

    def test_a_processor_config_must_suit_the_tower(self):
        model = self.folder / 'model'
        shutil.copytree(ROOT / 'demo' / 'demo-qwen3_5', model)
        config = json.loads((model / 'preprocessor_config.json').read_text())
        picture = str(model / 'images' / 'shapes_1.png')
        for key in 'patch_size', 'temporal_patch_size', 'merge_size':
            (model / 'preprocessor_config.json').write_text(json.dumps({**config, key: 2 * config[key]}))
            self.fails(1, ('preprocessor_config.json', key, str(config[key])), 'generate', str(model), 'hi', '--image', picture)

    def test_overrides_reach_the_config_of_the_text(self):
        yarn = '{"quantization_config": null, "rope_scaling": {"type": "yarn", "factor": 2}}'
        self.assertIn('yarn', self.ok('inspect', '--hf-overrides', yarn))
        self.assertNotIn('yarn', self.ok('inspect'))
        self.fails(1, ('text_config', 'eos_token_id'), 'inspect', '--hf-overrides', '{"eos_token_id": -1}')

    # limits

    def test_limits_of_every_verb(self):
        text = self.file('text', 'A short text to evaluate.')
        ids = struct.pack('<12i', *range(5, 17))
        header = json.dumps({'input_ids': {'dtype': 'I32', 'shape': [12], 'data_offsets': [0, 48]}}).encode()
        (self.folder / 'in').write_bytes(struct.pack('<Q', len(header)) + header + ids)
        verbs = (('generate', 'hi', *GREEDY), ('eval', '--text', text), ('inspect',),
                 ('logits', '--input', str(self.folder / 'in'), '--output', str(self.folder / 'out')))
        for verb in verbs:
            for flag in LIMITS:
                for value in '0', '9' * 30, str(2**63 - 1):
                    self.fails(2, flag, *verb, flag, value)
        for verb in verbs:
            for flag in LIMITS:
                done = self.run_program(*verb, flag, '1')
                self.assertIn(done.returncode, (0, 1), f'{verb} {flag} 1: {done.err}')
                if done.returncode == 1:
                    self.assertIn(flag, done.err)
        self.fails(1, ('--max-model-len 65536', '32768'), 'eval', '--text', text, '--max-model-len', '65536')
        self.fails(1, ('of memory are needed', 'lower'), 'eval', '--text', text, '--num-gpu-blocks-override', str(2**31 - 1))
        latency = ('bench', 'latency', '--batch-size', '2', '--input-len', '20', '--output-len', '2')
        for flag in LIMITS[:-1]:
            self.fails(1, flag + ' 1 is too small', *latency, flag, '1')

    def test_inspect_plans_any_size(self):
        plan = json.loads(self.ok('inspect', '--json', '--max-num-seqs', '60000', '--max-model-len', '32768', '--block-size', '1'))
        self.assertGreater(plan['memory']['total'], 4e12)
        self.assertGreater(plan['drafter']['total'], 0)
        self.assertGreater(plan['vision']['weights'], 0)
        self.fails(1, 'more than can be counted', 'inspect', '--max-num-seqs', '65536', '--max-model-len', '32768',
                   '--block-size', '1')

    # standard streams

    def test_results_that_cannot_be_written(self):
        for args in ('version',), ('--help',), ('inspect',), ('generate', 'hi', *GREEDY), ('tokenize', 'hi'):
            with open('/dev/full', 'wb') as full:
                self.fails(1, 'cannot write standard output: No space left', *args, stdout=full)
            self.fails(1, 'cannot write standard output', *args, preexec_fn=lambda: os.close(1), stdout=None)

    def test_a_reader_that_leaves_is_no_news(self):
        for ignored in False, True:
            reader, writer = os.pipe()
            os.close(reader)
            prepare = (lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)) if ignored else None
            done = self.run_program('tokenize', 'hi', stdout=writer, preexec_fn=prepare, restore_signals=not ignored)
            os.close(writer)
            self.assertEqual((done.returncode, done.err), (1 if ignored else -signal.SIGPIPE, ''))

    def test_closed_descriptors(self):
        answer = self.ok('generate', 'hi', *GREEDY)
        for fds in (0,), (0, 2), (2,):
            out = self.run_program('generate', 'hi', *GREEDY, preexec_fn=lambda: [os.close(fd) for fd in fds])
            self.assertEqual((out.returncode, out.out), (0, answer), fds)
        self.fails(1, 'standard input', 'generate', *GREEDY, preexec_fn=lambda: os.close(0))
        chat = subprocess.Popen([PROGRAM, 'chat', *GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
                                preexec_fn=lambda: os.close(2))
        chat.stdin.write(b'hi\n')
        chat.stdin.flush()
        chat.stdout.readline()
        self.assertEqual(os.readlink(f'/proc/{chat.pid}/fd/2'), '/dev/null', 'no file of the model')
        chat.communicate()
        self.assertEqual(chat.returncode, 0)

    def test_input_that_cannot_be_read(self):
        for args in ('generate',), ('chat', *GREEDY), ('tokenize',), ('tokenize', '--jsonl'), ('render', '--jsonl'):
            folder = os.open(self.folder, os.O_RDONLY)
            self.fails(1, 'cannot read standard input: Is a directory', *args, stdin=folder)
            os.close(folder)
        self.fails(1, 'cannot read /nowhere', 'generate', '--file', '/nowhere')
        self.fails(1, 'cannot read /nowhere', 'generate', 'hi', '--image', '/nowhere')
        self.fails(1, 'Is a directory', 'eval', '--text', str(self.folder))

    # words

    def test_prompts_come_as_they_are(self):
        for text in '[brackets]', '[a,b]', '{}', '%%', 'version', 'chat':
            row = json.loads(self.ok('tokenize', '--json', text))
            self.assertEqual(self.ok('tokenize', '--decode', ','.join(map(str, row['ids']))), text + '\n')
        row = json.loads(self.ok('tokenize', '--json', '--', '--raw'))
        self.assertEqual(''.join(row['pieces']), '--raw')

    def test_list_flags_take_one_value_each(self):
        out = json.loads(self.ok('generate', '--json', *GREEDY, '--allowed-token-ids', '5,6', '--allowed-token-ids', '[7]',
                                 '--stop', '[x]', '--stop', 'y', '--bad-words', 'z', '[prompt]'))
        self.assertLessEqual(set(out['token_ids']), {5, 6, 7})
        stopped = json.loads(self.ok('generate', '--json', '--temperature', '0', '--stop', 'never', '--stop', 'el', 'hi'))
        self.assertEqual((stopped['finish_reason'], stopped['stop_reason'], stopped['text']), ('stop', 'el', 'H'))

    def test_where_the_prompt_comes_from(self):
        answer = self.ok('generate', 'hi', *GREEDY)
        prompt = self.file('prompt', 'hi')
        for args, stdin in ((('generate', *GREEDY), 'hi'), (('generate', '--file', '-', *GREEDY), 'hi'),
                            (('generate', '--file', prompt, *GREEDY), ''), (('generate', 'demo:qwen3_5', *GREEDY), 'hi'),
                            (('generate', 'demo:qwen3_5', '--file', prompt, *GREEDY), '')):
            self.assertEqual(self.ok(*args, stdin=stdin), answer, args)
        fifo = str(self.folder / 'fifo')
        os.mkfifo(fifo)
        with subprocess.Popen(['/bin/sh', '-c', f'printf hi > {fifo}']):
            self.assertEqual(self.ok('generate', '--file', fifo, *GREEDY), answer)
        self.fails(2, 'given twice', 'generate', '--file', prompt, '--prompt-ids', '1')
        self.fails(2, 'given twice', 'generate', '--file', prompt, 'demo:qwen3_5', 'hi')
        self.fails(2, 'one word too many', 'generate', 'a', 'b', 'c')
        self.fails(2, 'empty', 'generate')
        self.assertEqual(json.loads(self.ok('generate', '--json', '--prompt-ids', '1,2', *GREEDY))['prompt_token_ids'], [1, 2])

    # --config

    def test_config_file(self):
        config = self.file('c.yaml', '# flags\n---\nmodel: demo:bailing\ntemperature: 0\nmax_tokens: 4  # comment\nstop:\n'
                           "  - 'it''s'\n- \"\\u005bEND]\"\nstop-token-ids: [6000, 6001]\nlogit-bias: {\"5\": -100}\n"
                           'ignore-eos: true\nno-thinking: true\njson: true\n')
        out = json.loads(self.ok('generate', '--config', config, 'hi'))
        self.assertEqual((len(out['token_ids']), out['text'][:5]), (4, 'Hello'))
        self.assertEqual(len(json.loads(self.ok('generate', 'hi', '--max-tokens', '2', '--config', config))['token_ids']), 2)
        qwen = json.loads(self.ok('generate', '--config', config, 'demo:qwen3_5', 'hi'))
        self.assertNotEqual(qwen['prompt_token_ids'], out['prompt_token_ids'])

    def test_config_stop_list(self):
        config = self.file('c.yaml', 'temperature: 0\nstop: ["never", "el"]\njson: true\n')
        self.assertEqual(json.loads(self.ok('generate', '--config', config, 'hi'))['text'], 'H')
        other = json.loads(self.ok('generate', '--config', config, 'hi', '--stop', 'llo'))
        self.assertEqual(other['text'], 'He', 'the list of the command line replaces that of the file')

    def test_config_errors(self):
        for text, words in (('foo: 1', ('line 1', '--foo')), ('# x\n\nfoo_bar: 1', ('line 3', '--foo-bar')),
                            ('seed: [1, 2]', ('seed', 'one value')), ('seed:', ('seed', 'no value')),
                            ('seed:\n  a: 1', ('line 2', 'JSON')), ('stop: "x', ('line 1', 'quoted')),
                            ('stop: |', ('quoted',)), ('seed: 1\nseed: 2', ('line 2', 'twice')),
                            ('raw: maybe', ('true or false',)), ('logit-bias: {a: 1}', ('JSON',)), ('text', ('expected',)),
                            ('seed: -1', ('--seed',)), ('stop: a: b', ('quoted',)), ('config: x', ('--config',)),
                            ("seed: 'it''s'  # x", ("got it's",)), ('seed: "\\u005b#"', ('got [#',))):
            self.fails(2, words, 'generate', '--config', self.file('c.yaml', text), 'hi')
        self.fails(2, ('--config', '/nowhere'), 'generate', '--config', '/nowhere', 'hi')

    # rows

    def test_render(self):
        rows = ['{"template": "{{ a }}", "context": {"a": 1}}', '{"messages": [{"role": "user", "content": "hi"}]}',
                '{"messages": 5}', '{}', '5']
        none = {**ENVIRONMENT, 'CALANDRA_DEMO_DIR': str(self.folder)}
        self.assertEqual(self.ok('render', '--jsonl', stdin=rows[0], env=none), '{"output":"1"}\n')
        out = [json.loads(line) for line in self.ok('render', '--jsonl', stdin='\n'.join(rows)).splitlines()]
        self.assertEqual(out[1], {'text': '<|im_start|>user\nhi<|im_end|>\n'})
        self.assertEqual([list(row) for row in out], [['output'], ['text'], ['error'], ['error'], ['error']])
        messages = self.file('m', '[{"role": "user", "content": "hi"}]')
        self.assertTrue(self.ok('render', '--messages', messages).startswith(out[1]['text'] + '<|im_start|>assistant'))
        self.fails(1, 'list of messages', 'render', '--messages', self.file('n', '{"role": "user"}'))
        self.fails(2, '--messages', 'render')
        self.fails(2, '--kwargs', 'render', '--messages', messages, '--kwargs', '[]')

    def test_tokenize_rows(self):
        out = self.ok('tokenize', '--jsonl', stdin='{"text": "Hello there"}\n\n{"ids": [72, 73]}\nx\n')
        rows = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(self.ok('tokenize', '--decode', str(rows[0]['ids'])), 'Hello there\n')
        self.assertEqual(rows[1]['text'], ''.join(rows[1]['pieces']) + rows[1]['flush'])
        self.assertIn('error', rows[2])

    # research verbs

    def test_names_that_match_nothing(self):
        ids = struct.pack('<4i', 5, 6, 7, 8)
        header = json.dumps({'input_ids': {'dtype': 'I32', 'shape': [4], 'data_offsets': [0, 16]}}).encode()
        (self.folder / 'in').write_bytes(struct.pack('<Q', len(header)) + header + ids)
        logits = ('logits', 'demo:bailing', '--input', str(self.folder / 'in'), '--output', str(self.folder / 'out'))
        self.fails(1, ('--taps foo', 'embedding', 'layers.L'), *logits, '--taps', 'foo')
        self.assertFalse((self.folder / 'out').exists())
        self.ok(*logits, '--taps', '*slope', '--chunk', '1')
        data = (self.folder / 'out').read_bytes()
        names = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]])
        self.assertEqual(names['layers.0.slope']['shape'], [4], 'a constant, once, whatever the chunks')
        self.fails(2, 'no shape foo', 'bench', 'ops', '--shape', 'foo')

    def test_eval_windows(self):
        text = self.file('text', 'one two three four five six')
        whole = json.loads(self.ok('eval', '--text', text, '--json'))
        self.assertEqual((whole['window'], len(whole['window_nll'])), (1024, 1))
        large = json.loads(self.ok('eval', '--text', text, '--json', '--window', '1000000'))
        self.assertEqual(large['nll'], whole['nll'])
        short = json.loads(self.ok('eval', '--text', '-', '--json', '--max-model-len', '4', stdin='one two three four five six'))
        self.assertEqual((short['window'], short['tokens']), (4, whole['tokens']))

    # chat

    def test_chat_from_a_pipe(self):
        saved = str(self.folder / 'saved')
        self.ok('chat', *GREEDY, stdin=f'hi\n/save {saved}\n')
        self.assertEqual([m['role'] for m in json.loads(pathlib.Path(saved).read_text())], ['user', 'assistant'])
        self.fails(1, 'cannot write /dev/full', 'chat', *GREEDY, stdin='/save /dev/full\n')
        self.fails(1, 'no command /foo', 'chat', *GREEDY, stdin='/foo\n')
        self.fails(1, 'cannot read', 'chat', *GREEDY, stdin='/image /nowhere\n')

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
            os.execve(PROGRAM, [PROGRAM, 'chat', *GREEDY], {**ENVIRONMENT, 'LC_ALL': 'C', 'TERM': 'dumb'})
        self.addCleanup(os.close, terminal)
        at_prompt = lambda shown: b'\r\n> ' in shown and not termios.tcgetattr(terminal)[3] & termios.ICANON
        try:
            self.read_terminal(terminal, at_prompt)
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


class XmlResult(unittest.TextTestResult):
    """Keeps what a GoogleTest report says of each case."""
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.cases = ElementTree.Element('testsuite', name='Cli')

    def stopTest(self, test):
        case = ElementTree.SubElement(self.cases, 'testcase', name=test.id().split('.')[-1], classname='Cli', status='run')
        for broken, text in self.failures + self.errors:
            if getattr(broken, 'test_case', broken) is test:
                ElementTree.SubElement(case, 'failure', message=text)
                break
        super().stopTest(test)


def main():
    global PROGRAM
    PROGRAM = os.path.abspath(sys.argv[1])
    runner = unittest.TextTestRunner(resultclass=XmlResult, verbosity=1)
    result = runner.run(unittest.defaultTestLoader.loadTestsFromTestCase(Cli))
    output = os.environ.get('GTEST_OUTPUT', '')
    if output.startswith('xml:'):
        suites = ElementTree.Element('testsuites')
        suites.append(result.cases)
        ElementTree.ElementTree(suites).write(os.path.join(output[4:], 'cli_test.xml'))
    return 0 if result.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main())

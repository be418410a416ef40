#!/usr/bin/env python3
"""The command line as people and scripts meet it: parse, grammar, render, tokenize, sample, logits, eval.

    cli_rows_test.py PROGRAM
"""
import json
import os
import pathlib
import signal
import struct
import sys

from cli_harness import ENVIRONMENT, GREEDY, ROOT, CliCase, main


class CliRows(CliCase):
    def test_parse_and_grammar(self):
        call = '<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>'
        tools = [{'type': 'function', 'function': {'name': 'f', 'parameters': {'properties': {'x': {'type': 'integer'}}}}}]
        rows = [{'text': 'so</think>ok ' + call, 'thinking': True, 'tools': tools}, {'chunks': list('ok ' + call), 'tools': tools},
                {'prompt': '<think>'}, {'text': 5}, {}]
        flags = ('--reasoning-parser', 'qwen3', '--tool-call-parser', 'qwen3_coder', '--jsonl')
        out = [json.loads(line) for line in self.ok('parse', *flags, stdin='\n'.join(map(json.dumps, rows))).splitlines()]
        for row, reasoning in zip(out, ('so', '')):
            self.assertEqual((row['reasoning'], row['content']), (reasoning, 'ok '))
            self.assertEqual(row['tool_calls'][0]['function'], {'name': 'f', 'arguments': '{"x": 5}'})
        self.assertEqual(out[2], {'in_reasoning': True})
        self.assertEqual([row['error']['class'] for row in out[3:]], ['UsageError'] * 2)
        self.fails(2, '--tool-call-parser is one of', 'parse', '--tool-call-parser', 'mistral', '--jsonl')
        rows = [{'regex': 'a+', 'accept': ['aa', 'b'], 'reject': ['', 'a']}, {'schema': {'not': {}}}, {'accept': []}]
        out = [json.loads(line) for line in self.ok('grammar', '--jsonl', stdin='\n'.join(map(json.dumps, rows))).splitlines()]
        self.assertEqual(out[0], {'accepted': [True, False], 'rejected': [True, False]})
        self.assertIn('not is not supported', out[1]['error'])
        self.assertEqual(out[2]['error']['class'], 'UsageError')

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
        self.fails(1, '999999 is outside the vocabulary', 'tokenize', '--decode', '5,999999')

    def test_sample_rows(self):
        rows = '{"logits": [0, 1], "params": {"temprature": 1}}\n{"logits": "none"}\n{"logits": "a"}\n'
        out = self.ok('sample', '--jsonl', '--logits', self.file('logits', '{"a": [0, 1]}'), stdin=rows)
        wrong, unknown, fine = (json.loads(line) for line in out.splitlines())
        self.assertIn('no parameter temprature', wrong['error']['message'])
        self.assertIn('no logits "none"', unknown['error']['message'])
        self.assertEqual(fine['greedy_id'], 1)

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
        for verb in ('bench', 'ops'), ('bench', 'latency'), ('bench', 'throughput'), ('inspect',):
            self.fails(2, 'no shape foo', *verb, '--shape', 'foo')

    def test_prepared_pictures_must_suit_the_tower(self):
        config = json.loads((ROOT / 'demo' / 'demo-qwen3_5' / 'config.json').read_text())
        tokens = [5, config['vision_start_token_id'], config['image_token_id'], config['vision_end_token_id'], 6]
        def logits(grid, axes, values=1536, next_token=(1,)):
            header, data = {}, b''
            for name, kind, shape in (('input_ids', 'i', [5]), ('next_token', 'i', [len(next_token)]),
                                      ('image_grid_thw', 'i', axes), ('pixel_values', 'f', [4, values])):
                numbers = {'input_ids': tokens, 'next_token': next_token, 'image_grid_thw': grid}.get(name, [0] * 4 * values)
                piece = struct.pack(f'<{len(numbers)}{kind}', *numbers)
                header[name] = {'dtype': 'I32' if kind == 'i' else 'F32', 'shape': shape,
                                'data_offsets': [len(data), len(data) + len(piece)]}
                data += piece
            header = json.dumps(header).encode()
            (self.folder / 'in').write_bytes(struct.pack('<Q', len(header)) + header + data)
            return 'logits', '--mtp', '1', '--input', str(self.folder / 'in'), '--output', str(self.folder / 'out')
        self.ok(*logits([1, 2, 2], [1, 3]))
        self.fails(1, 'image_grid_thw must be [pictures, 3]', *logits([1, 2, 2, 9], [1, 4]))
        self.fails(1, '4 x 1 patches: both must be multiples of 2', *logits([1, 4, 1], [1, 3]))
        self.fails(1, 'a patch has 1535 values, the vision tower takes 1536', *logits([1, 2, 2], [1, 3], 1535))
        self.fails(1, 'next_token holds 0 ids', *logits([1, 2, 2], [1, 3], next_token=()))

    def test_a_video_file(self):
        for name, lines in (('ffprobe', ('echo \'{"streams": [{"width": 64, "height": 64, "avg_frame_rate": "8/1", '
                                         '"nb_read_packets": "8"}]}\'',)),
                            ('ffmpeg', ('head -c 49152 /dev/zero',))):
            path = pathlib.Path(self.file(name, '\n'.join(('#!/bin/sh', *lines))))
            path.chmod(0o700)
        clip = self.file('-a clip, [it\'s] 50%.mp4', 'x')
        programs = {**ENVIRONMENT, 'PATH': f'{self.folder}:{os.environ["PATH"]}'}
        for ignored in False, True:  # that children end
            prepare = (lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) if ignored else None
            out = self.ok('generate', 'hi', '--video', clip, '--json', *GREEDY, env=programs, preexec_fn=prepare)
            self.assertEqual(json.loads(out)['finish_reason'], 'length')
        self.fails(1, ('clip, [it', 'needs the program ffprobe'), 'generate', 'hi', '--video', clip,
                   env={**ENVIRONMENT, 'PATH': '/nowhere'})

    def test_eval_windows(self):
        text = self.file('text', 'one two three four five six')
        whole = json.loads(self.ok('eval', '--text', text, '--json'))
        self.assertEqual((whole['window'], len(whole['window_nll'])), (1024, 1))
        large = json.loads(self.ok('eval', '--text', text, '--json', '--window', '1000000'))
        self.assertEqual(large['nll'], whole['nll'])
        short = json.loads(self.ok('eval', '--text', '-', '--json', '--max-model-len', '4', stdin='one two three four five six'))
        self.assertEqual((short['window'], short['tokens']), (4, whole['tokens']))


if __name__ == '__main__':
    sys.exit(main())

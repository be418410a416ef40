#!/usr/bin/env python3
"""write_dummy_checkpoint and `calandra bench startup`, with a tiny model in the shape of a release.

    startup_test.py PROGRAM WRITER

Nothing is asserted about time.
"""
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import gtest_report

TINY = {'hidden_size': 128, 'intermediate_size': 192, 'vocab_size': 9000, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 64,
        'linear_key_head_dim': 32, 'linear_value_head_dim': 32, 'linear_num_key_heads': 2, 'linear_num_value_heads': 4, 'eos_token_id': 1,
        'rope_parameters': {'mrope_section': [3, 3, 2]}}
FP8 = {'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [128, 128]}}
PHASES = ['process', 'config', 'backend', 'model', 'weights', 'tokenizer', 'memory', 'warm-up', 'first token']


def run(*command, status=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {'CALANDRA_BACKEND': 'cpu'})
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def write(folder, *flags, overrides=TINY, status=0):
    return run(WRITER, str(folder), '--shape', 'qwen3_5-0.8b', '--num-hidden-layers', '4', '--hf-overrides', json.dumps(overrides), *flags, status=status)


class Startup(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.place.name) / 'model'

    def tearDown(self):
        self.place.cleanup()

    def tokens(self, *flags):
        line = run(PROGRAM, 'generate', str(self.folder), '--prompt-ids', '5,6,7,8', '--temperature', '0', '--max-tokens', '12', '--ignore-eos', '--json', *flags)
        return json.loads(line)['token_ids']

    def test_what_is_written_is_what_the_program_makes_of_the_shape(self):
        for overrides in (TINY, TINY | FP8):
            with self.subTest(fp8=overrides is not TINY), tempfile.TemporaryDirectory() as place:
                self.folder = pathlib.Path(place) / 'model'
                write(self.folder, overrides=overrides)
                tokens = self.tokens()
                self.assertEqual(len(tokens), 12)
                self.assertEqual(tokens, self.tokens('--load-format', 'dummy'))
                self.assertEqual(tokens, self.tokens('--speculative-config', '{"method": "mtp"}'))

    def test_the_shape_alone_decides_what_is_written(self):
        contents = []
        for name in ('one', 'two'):
            folder = pathlib.Path(self.place.name) / name
            write(folder)
            contents.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()})
        self.assertEqual(contents[0], contents[1])
        self.assertLessEqual({'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'}, contents[0].keys())

    def test_nothing_is_overwritten(self):
        write(self.folder)
        self.assertIn('exists and is no empty folder', write(self.folder, status=1))

    def test_every_phase_is_told(self):
        write(self.folder)
        line = json.loads(run(PROGRAM, 'bench', 'startup', str(self.folder), '--input-len', '20', '--max-model-len', '64', '--json'))
        self.assertEqual([phase['phase'] for phase in line['phases']], PHASES)
        self.assertEqual(line['file_bytes'], next(phase['bytes'] for phase in line['phases'] if phase['phase'] == 'weights'))
        self.assertAlmostEqual(line['first_token_s'], sum(phase['seconds'] for phase in line['phases']))
        self.assertGreater(line['floor_s'], 0)
        text = run(PROGRAM, 'bench', 'startup', str(self.folder), '--input-len', '20', '--max-model-len', '64')
        for word in (*PHASES, 'ready', 'probe', 'floor'):
            self.assertIn(word, text)
        # Without files there is nothing to compare with.
        line = json.loads(run(PROGRAM, 'bench', 'startup', str(self.folder), '--load-format', 'dummy', '--input-len', '20', '--max-model-len', '64', '--json'))
        self.assertEqual((line['file_bytes'], line['floor_s'], line['weights_over_floor']), (0, 0, None))


if __name__ == '__main__':
    PROGRAM, WRITER = sys.argv[1:3]
    sys.exit(gtest_report.main(sys.argv[3:]))

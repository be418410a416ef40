#!/usr/bin/env python3
# Length: one case per promise of the command line, which share the folders that are set up once.
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


def request(custom_id, url, **body):
    return {'custom_id': custom_id, 'method': 'POST', 'url': url, 'body': body}


def completion(custom_id, **body):
    return request(custom_id, '/v1/completions', **{'prompt': 'Hello', **body})


def chat(custom_id, **body):
    return request(custom_id, '/v1/chat/completions', **{'messages': [{'role': 'user', 'content': 'What is 2 + 3?'}], **body})


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
        self.fails(2, ('bench needs a verb', 'latency, throughput, acceptance, startup, ops, serve'), 'bench')
        self.fails(2, ('no flag --foo',), 'generate', '--foo', 'hi')
        self.fails(2, '--seed needs a value', 'generate', 'hi', '--seed')
        self.fails(2, '--raw is a flag', 'generate', '--system', '--raw', 'hi')
        self.fails(2, '--input is required', 'logits')
        self.fails(2, 'did you mean generate?', 'generte')
        self.fails(2, 'pull is not in this version yet', 'pull')
        for flag, meant in ('--temprature', '--temperature'), ('--max_tokens', '--max-tokens'), ('--top_pp', '--top-p'):
            self.fails(2, (f'no flag {flag}', f'did you mean {meant}?'), 'generate', 'hi', flag, '1')
        self.assertNotIn('did you mean', self.fails(2, 'no flag --foo', 'generate', 'hi', '--foo').err)
        self.fails(2, '--pipeline-layers is not in this version yet', 'generate', 'hi', '--pipeline-layers', '1')
        self.fails(2, 'did you mean --seed?', 'generate', 'hi', '--config', self.file('c.yaml', 'sed: 1'))

    def test_help_shows_types_and_defaults(self):
        text = ' '.join(self.ok('generate', '--help').split())
        for words in '--file FILE', '--image FILE', '--no-thinking ', '(24)', 'chat 8192', 'with --raw 256':
            self.assertIn(words, text)
        self.assertNotIn('{false}', text)
        self.assertIn('--output FILE', self.ok('logits', '--help'))
        for words in 'calandra ', 'built with ', 'instruction sets':
            self.assertIn(words, self.ok('version'))

    # models

    def broken_copy(self, demo='qwen3_5'):
        """A demo model without a tensor: what is refused nevertheless with another message is so before weights are read."""
        model = self.folder / 'broken'
        shutil.copytree(ROOT / 'demo' / f'demo-{demo}', model)
        (model / 'model.safetensors').write_bytes(struct.pack('<Q', 8) + b'{}      ')
        return model

    def test_what_is_no_model(self):
        folder = self.folder / 'lora'
        folder.mkdir()
        self.fails(1, 'no config.json', 'generate', str(folder), 'hi')
        (folder / 'adapter_config.json').write_text('{}')
        for verb in 'generate', 'inspect':
            self.fails(1, ('LoRA adapter', 'not supported yet'), verb, str(folder), *(['hi'] if verb == 'generate' else []))
        model = self.broken_copy()
        (model / 'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n')
        self.fails(1, ('model.safetensors', 'Git LFS pointer', 'git lfs pull'), 'generate', str(model), 'hi')
        cached = self.folder / 'hub' / 'models--some--model'
        (cached / 'snapshots').mkdir(parents=True)
        cache = {**ENVIRONMENT, 'HF_HUB_CACHE': str(self.folder / 'hub')}
        self.fails(1, ('some/model', 'incomplete', 'hf download some/model'), 'inspect', 'some/model', env=cache)

    def test_faults_are_found_before_weights_are_read(self):
        model = self.broken_copy()
        picture = str(model / 'images' / 'shapes_1.png')
        pad = '<|vision_start|><|image_pad|><|vision_end|>'
        def fails(words, *args, **more):
            self.fails(1, words, 'generate', str(model), *args, **more)
        fails('tensors of the model are missing', 'hi')
        fails('--prompt-ids: 999999 is outside', '--prompt-ids', '999999')
        fails('999999', 'hi', '--logit-bias', '{"999999": 1}')
        fails('--max-model-len 2 is too small', 'hi', '--max-model-len', '2')
        fails('--num-gpu-blocks-override 1 is too small', 'hi', '--num-gpu-blocks-override', '1', '--block-size', '4')
        fails(('2 image placeholders', '1 images', '<|image_pad|>'), '--raw', pad + pad, '--image', picture)
        fails(('0 image placeholders', '<|image_pad|>'), '--raw', 'hi', '--image', picture)
        fails(('1 image placeholder (<|image_pad|>)', 'no image was given'), '--raw', pad)
        clip = self.file('clip.mp4', 'x')
        fails('needs the program ffprobe', 'hi', '--video', clip, env={**ENVIRONMENT, 'PATH': '/nowhere'})
        config = json.loads((model / 'tokenizer_config.json').read_text())
        (model / 'tokenizer_config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'chat_template'}))
        (model / 'chat_template.jinja').unlink(missing_ok=True)
        for verb, text in ('generate', ['hi']), ('chat', []):
            self.fails(1, 'no chat template', verb, str(model), *text)
        (model / 'tokenizer.json').unlink()
        fails('no tokenizer.json', '--raw', 'hi')

    def test_placeholders_without_pictures(self):
        config = json.loads((ROOT / 'demo' / 'demo-qwen3_5' / 'config.json').read_text())
        pad = config['image_token_id']
        self.fails(1, 'no image was given', 'generate', '--prompt-ids', f'5,{pad},6')
        self.fails(1, ('2 video placeholders', 'no video was given'), 'generate', '--prompt-ids', ','.join(2 * [str(config['video_token_id'])]))
        header = json.dumps({'input_ids': {'dtype': 'I32', 'shape': [2], 'data_offsets': [0, 8]}}).encode()
        (self.folder / 'in').write_bytes(struct.pack('<Q', len(header)) + header + struct.pack('<2i', 5, pad))
        self.fails(1, 'no image was given', 'logits', '--input', str(self.folder / 'in'), '--output', str(self.folder / 'out'))
        self.ok('generate', 'What is <|image_pad|>?', *GREEDY)

    def test_a_folder_as_video(self):
        frames = self.folder / 'frames'
        frames.mkdir()
        (frames / 'notes.txt').write_text('no image')
        self.fails(1, 'holds no images', 'generate', 'hi', '--video', str(frames))
        for i, name in enumerate(('1.png', '2.PNG')):
            shutil.copy(ROOT / 'demo' / 'demo-qwen3_5' / 'images' / 'shapes_1.png', frames / name)
        self.ok('generate', 'hi', '--video', str(frames), *GREEDY)

    def test_warnings_of_the_config_come_once(self):
        for args in ('inspect',), ('generate', 'hi', *GREEDY):
            done = self.run_program(*args, '--hf-overrides', '{"mamba_ssm_dtype": "bfloat16"}')
            self.assertEqual((done.returncode, done.err.count('mamba_ssm_dtype')), (0, 1), done.err)
        done = self.run_program('inspect', '--hf-overrides', '{"rope_scaling": {"type": "default", "foo": 1}, "bar": 2, "hidden_act": "silu"}')
        self.assertIn('nothing reads foo, bar, so', done.err)
        self.assertEqual(len(done.err.splitlines()), 1, done.err)
        self.assertEqual(self.run_program('generate', 'hi', *GREEDY).err, '', 'parts that nobody asked for are no news')

    # flag values

    def test_wrong_values_name_their_source(self):
        self.fails(2, 'CALANDRA_THREADS: --threads must be', 'inspect', env={**ENVIRONMENT, 'CALANDRA_THREADS': 'x'})
        self.fails(2, 'CALANDRA_BACKEND: --backend must be', 'inspect', env={**ENVIRONMENT, 'CALANDRA_BACKEND': 'x'})
        self.fails(2, ('c.yaml line 2: --seed must be',), 'generate', 'hi', '--config', self.file('c.yaml', '\nseed: x'))
        reference = {**ENVIRONMENT, 'CALANDRA_BACKEND': 'reference', 'CALANDRA_THREADS': '1'}
        def plan(*flags, env=reference):
            return json.loads(self.ok('inspect', '--json', *flags, env=env))
        self.assertEqual(plan()['backend'], 'reference')
        self.assertEqual(plan('--backend', 'cpu')['backend'], 'cpu')
        one, two = (plan('--backend', 'cpu', '--threads', n)['memory']['scratch'] for n in '12')
        self.assertGreater(two, one, 'the flag wins')
        config = self.file('threads.yaml', 'threads: 2\nbackend: cpu')
        self.assertEqual(plan('--config', config)['memory']['scratch'], two, 'the file wins')

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
        clip = self.file('clip.mp4', '')
        self.fails(2, '--video-fps is for folders', 'generate', 'hi', '--video', clip, '--video-fps', '1')
        self.fails(1, ('--num-hidden-layers 1000', '24'), 'inspect', '--shape', 'qwen3_5-0.8b', '--num-hidden-layers', '1000')
        self.fails(2, 'chat template', 'generate', '--raw', 'hi', '--no-thinking')
        self.fails(2, '--load-format dummy', 'bench', 'latency', '--shape', 'qwen3_5-0.8b')
        self.fails(2, '--chunk', 'logits', '--input', 'a', '--output', 'b', '--chunk', '1', '--max-num-batched-tokens', '1')
        self.fails(2, '--seed is given twice', 'generate', 'hi', '--seed', '1', '--seed', '1')
        for output in 'in', './in':
            self.fails(2, 'are the same file', 'logits', '--input', self.file('in', ''), '--output', f'{self.folder}/{output}')

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
        for flag in LIMITS:
            self.fails(1, flag + ' 1 is too small', *latency, flag, '1')

    def test_inspect_plans_any_size(self):
        plan = json.loads(self.ok('inspect', '--json', '--max-num-seqs', '60000', '--max-model-len', '32768', '--block-size', '1'))
        memory = plan['memory']
        self.assertGreater(memory['total'], 4e12)
        parts = 'weights', 'pages', 'slots', 'workspace', 'batch', 'rings', 'scratch'
        self.assertEqual(memory['total'], sum(memory[part] for part in parts))
        scratch = [json.loads(self.ok('inspect', '--json', env={**ENVIRONMENT, 'CALANDRA_THREADS': n}))['memory']['scratch'] for n in '12']
        self.assertGreater(scratch[1], scratch[0])
        self.assertGreater(plan['drafter']['total'], 0)
        self.assertGreater(plan['vision']['weights'], 0)
        self.fails(1, 'more than can be counted', 'inspect', '--max-num-seqs', '65536', '--max-model-len', '32768',
                   '--block-size', '1')

    # benches of the engine

    def bench(self, *args):
        done = self.ok('bench', *args, '--json', '--input-len', '6', '--output-len', '4')
        return [json.loads(line) for line in done.splitlines()]

    def test_bench_throughput(self):
        fixed = self.bench('throughput', '--num-prompts', '3', '--max-concurrency', '1,2')
        self.assertEqual([line['max_concurrency'] for line in fixed], [1, 2])
        for line in fixed:
            self.assertEqual((line['completed'], line['failed'], line['total_input_tokens'], line['total_output_tokens']), (3, 0, 18, 12))
            self.assertLess(line['median_ttft_ms'], line['median_e2el_ms'])
        self.assertEqual(fixed[0]['steps'], 12, 'one after the other')
        self.assertLess(fixed[1]['steps'], 12)
        agent, = self.bench('throughput', 'demo:bailing', '--mix', 'agent', '--num-prompts', '2', '--num-turns', '3', '--prefix-len', '40')
        self.assertEqual(agent['completed'], 6)
        prompts = [40 + 6 * turns + 4 * (turns - 1) for turns in (1, 2, 3)]
        self.assertEqual(agent['total_input_tokens'], 2 * sum(prompts))
        self.assertGreater(agent['total_cached_tokens'], 0.9 * agent['total_reusable_tokens'])
        poisson, = self.bench('throughput', '--mix', 'poisson', '--request-rate', '50', '--num-prompts', '3')
        self.assertEqual((poisson['completed'], poisson['request_rate']), (3, 50))

    def test_bench_compares_speculation(self):
        mtp = ('--speculative-config', '{"method": "mtp"}', '--compare-speculation', '--rounds', '2', '--max-concurrency', '2')
        lines = self.bench('throughput', *mtp, '--fixed-drafts', '2', '--dataset-path', str(ROOT / 'README.md'))
        self.assertEqual([line['drafts'] for line in lines], ['none', 'adaptive', 'fixed 2'])
        self.assertEqual(lines[0]['draft_tokens'], 0)
        self.assertGreater(lines[2]['draft_tokens'], 0)
        dummy = ('throughput', *mtp, '--fixed-drafts', '2', '--load-format', 'dummy', '--seed', '1', '--synthetic-acceptance')
        for rates, accepted in ('1,1', 1), ('0', 0), ('1,0', 0.5):
            line = self.bench(*dummy, rates)[2]
            self.assertGreater(line['draft_tokens'], 0)
            least, most = accepted * line['draft_tokens'] * 0.6, accepted * line['draft_tokens']
            self.assertTrue(least <= line['accepted_tokens'] <= most, line)  # an answer ends within a run

    def test_bench_acceptance(self):
        for demo in 'demo:qwen3_5', 'demo:bailing':
            line, = self.bench('acceptance', demo, '--dataset-path', str(ROOT / 'README.md'), '--num-prompts', '2', '--temperature', '0.8')
            self.assertEqual(line['places'], 4)
            for name in 'coupled', 'ideal', 'greedy', 'accepted_up_to':
                self.assertEqual(len(line[name]), 3)
                self.assertTrue(all(0 <= rate <= 1 for rate in line[name]), line)
        greedy, = self.bench('acceptance', '--dataset-path', str(ROOT / 'README.md'), '--num-prompts', '2', '--temperature', '0')
        self.assertEqual(greedy['coupled'], greedy['greedy'])

    def test_bench_flags_are_checked(self):
        throughput = ('bench', 'throughput')
        mtp = ('--speculative-config', '{"method": "mtp"}')
        for words, *flags in (('--request-rate', '--mix', 'poisson'), ('--num-turns', '--num-turns', '3'), ('--speculative-config', '--compare-speculation'),
                              ('--num-prompts', '--compare-speculation', *mtp, '--num-prompts', '3'), ('--fixed-drafts', '--fixed-drafts', '1'),
                              ('dummy', '--synthetic-acceptance', '0.5', *mtp), ('mtp', '--synthetic-acceptance', '0.5'),
                              ('must not grow', '--synthetic-acceptance', '0.5,0.6', '--load-format', 'dummy', *mtp),
                              ('--max-concurrency', '--max-concurrency', '1,0'), ('from 0 to 1', '--synthetic-acceptance', '2')):
            self.fails(2, words, *throughput, *flags)
        self.fails(2, '--dataset-path', 'bench', 'acceptance')
        self.fails(2, '--synthetic-acceptance', 'generate', 'hi', '--synthetic-acceptance', '0.5')

    # engine flags

    def test_engine_flags_are_checked(self):
        for flag, value in (('--speculative-config', '{"method": "x"}'), ('--speculative-config', '{}'), ('--speculative-config', '[]'),
                            ('--checkpoint-bytes', '-1'), ('--checkpoint-bytes', '1.5K'), ('--kv-cache-memory-bytes', '0'),
                            ('--scheduling-policy', 'lifo'), ('--draft-vocab', '0'), ('--draft-vocab', 'all')):
            self.fails(2, flag, 'generate', 'hi', flag, value)
        self.fails(2, '--max-num-batched-tokens must be at least --max-num-seqs', 'inspect', '--max-num-seqs', '4',
                   '--max-num-batched-tokens', '3')
        self.fails(2, '--num-gpu-blocks-override or --kv-cache-memory-bytes', 'inspect', '--num-gpu-blocks-override', '9',
                   '--kv-cache-memory-bytes', '1M')
        self.fails(2, '--no-enable-prefix-caching keeps no states', 'inspect', '--no-enable-prefix-caching', '--checkpoint-bytes', '1M')
        self.fails(2, '--draft-vocab is for', 'generate', 'hi', '--draft-vocab', '100')
        self.fails(1, '--kv-cache-memory-bytes 1 is too small', 'generate', 'hi', '--kv-cache-memory-bytes', '1')

    def test_a_model_without_draft_layers(self):
        mtp = '{"method": "mtp", "num_speculative_tokens": 2}'
        for model, key in ('demo:qwen3_5', '{"text_config": {"mtp_num_hidden_layers": 0}}'), ('demo:bailing', '{"num_nextn_predict_layers": 0}'):
            for verb in ('generate', model, 'hi'), ('inspect', model), ('chat', model):
                self.fails(1, ('no MTP layers', 'ngram'), *verb, '--hf-overrides', key, '--speculative-config', mtp)
        self.ok('generate', 'hi', *GREEDY, '--speculative-config', '{"method": "mtp", "num_speculative_tokens": 0}')

    def test_inspect_plans_the_engine(self):
        def memory(*flags):
            return json.loads(self.ok('inspect', '--json', *flags))['memory']
        plain = memory()
        parts = 'weights', 'pages', 'slots', 'workspace', 'batch', 'rings', 'scratch'
        kept = memory('--enable-prefix-caching', '--checkpoint-bytes', str(5 * plain['slot_bytes']))
        self.assertEqual((plain['num_slots'], kept['num_slots']), (9, 14))
        drafts = memory('--speculative-config', '{"method": "mtp"}')
        self.assertGreater(drafts['rings'], 0)
        self.assertGreater(drafts['slot_bytes'], plain['slot_bytes'])
        for plan in plain, kept, drafts:
            self.assertEqual(plan['total'], sum(plan[part] for part in parts))
        self.assertEqual(memory('--kv-cache-memory-bytes', '1M')['num_pages'], 2**20 // plain['page_bytes'])
        self.assertEqual(memory('--max-model-len', '4K'), memory('--max-model-len', '4.096k'))

    def test_fewer_sequences_when_memory_is_short(self):
        path = self.batch_file([completion(str(i), max_tokens=2, temperature=0) for i in range(3)])
        many = '60000', '--max-num-batched-tokens', '60000'
        done = self.run_program('run-batch', '-i', path, '-o', '-', '--max-num-seqs', *many)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertIn('60000 sequences at once do not fit into memory', done.err)
        self.assertEqual(len(done.out.splitlines()), 3)

    def test_drafts_of_generate(self):
        prompt = '--raw', 'Once upon a time there was a time once upon a time', '--json', '--max-tokens', '24', '--seed', '5'
        for model in 'demo:qwen3_5', 'demo:bailing':
            plain = json.loads(self.ok('generate', model, *prompt))
            self.assertEqual(plain['speculation'], {'drafted': 0, 'accepted': 0})
            for config in '{"method": "mtp", "num_speculative_tokens": 3, "adaptive": false}', '{"method": "ngram", "prompt_lookup_min": 1}':
                out = json.loads(self.ok('generate', model, *prompt, '--speculative-config', config))
                self.assertEqual(out['token_ids'], plain['token_ids'])
                if 'mtp' in config:
                    self.assertGreater(out['speculation']['drafted'], 0)

    # run-batch

    def batch_file(self, rows):
        return self.file('in.jsonl', ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows))

    def batch(self, rows, *flags):
        """Answers by custom_id, in the order of the file."""
        out = self.folder / 'out.jsonl'
        self.ok('run-batch', *flags, '-i', self.batch_file(rows), '-o', str(out))
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual(len(lines), len(rows))
        return lines

    def bodies(self, rows, *flags):
        """The same, without what may differ between runs."""
        result = {}
        for line in self.batch(rows, *flags):
            self.assertEqual((line['response']['status_code'], line['error']), (200, None), line)
            body = line['response']['body']
            result[line['custom_id']] = {key: body[key] for key in body if key not in ('id', 'created', 'usage')}
        return result

    def test_run_batch(self):
        for model in 'demo:qwen3_5', 'demo:bailing':
            alone = json.loads(self.ok('generate', model, '--raw', 'Once upon a time', '--json', '--temperature', '0', '--max-tokens', '9'))
            chat = json.loads(self.ok('generate', model, 'What is 2 + 3?', '--json', '--temperature', '0', '--max-tokens', '9'))
            ids = alone['prompt_token_ids']
            rows = [completion('text', prompt='Once upon a time', max_tokens=9, temperature=0, return_token_ids=True),
                    completion('ids', prompt=ids, max_tokens=9, temperature=0, return_token_ids=True),
                    completion('list', prompt=[ids, [5, 6, 7]], n=2, max_tokens=9, seed=3, return_token_ids=True, temperature=1),
                    completion('second', prompt=[5, 6, 7], n=4, max_tokens=9, seed=3, return_token_ids=True, temperature=1),
                    request('chat', '/v1/chat/completions', messages=[{'role': 'user', 'content': 'What is 2 + 3?'}], max_completion_tokens=9,
                            max_tokens=1, temperature=0, return_token_ids=True)]
            lines = self.batch(rows, model)
            self.assertEqual([line['custom_id'] for line in lines], ['text', 'ids', 'list', 'second', 'chat'])
            bodies = {line['custom_id']: line['response']['body'] for line in lines}
            for name in 'text', 'ids':
                choice, = bodies[name]['choices']
                self.assertEqual((choice['token_ids'], choice['text'], choice['prompt_token_ids']), (alone['token_ids'], alone['text'], ids))
                self.assertEqual(choice['finish_reason'], alone['finish_reason'])
            choice, = bodies['chat']['choices']
            self.assertEqual((choice['token_ids'], choice['message']), (chat['token_ids'], {'role': 'assistant', 'content': chat['text']}))
            self.assertEqual(bodies['chat']['prompt_token_ids'], chat['prompt_token_ids'])
            self.assertEqual([c['index'] for c in bodies['list']['choices']], [0, 1, 2, 3])
            # Prompt j of a list has the choices from j * n on, so their noise is that of these choices.
            self.assertEqual([c['token_ids'] for c in bodies['list']['choices'][2:]], [c['token_ids'] for c in bodies['second']['choices'][2:]])
            self.assertNotEqual(*[c['token_ids'] for c in bodies['list']['choices'][:2]])
            usage = bodies['list']['usage']
            completions = sum(len(c['token_ids']) for c in bodies['list']['choices'])
            self.assertEqual((usage['prompt_tokens'], usage['completion_tokens'], usage['total_tokens']),
                             (len(ids) + 3, completions, len(ids) + 3 + completions))

    def test_run_batch_is_the_same_whatever_the_engine_does(self):
        text = 'Once upon a time there was a little '
        rows = [completion(f'{i}', prompt=text * (1 + i % 3) + word, max_tokens=20, n=1 + i % 2, return_token_ids=True, logprobs=2,
                           **(dict(temperature=0) if i % 2 else dict(seed=i, temperature=0.9, top_p=0.9, min_p=0.02, presence_penalty=0.5)))
                for i, word in enumerate(('dog', 'cat', 'house', 'boy', 'girl', 'bird'))]
        rows.append(request('chat', '/v1/chat/completions', messages=[{'role': 'user', 'content': 'What is 2 + 3?'}], seed=1, max_tokens=20, logprobs=True))
        for model in 'demo:qwen3_5', 'demo:bailing':
            plain = self.bodies(rows, model, '--max-num-seqs', '1', '--no-enable-prefix-caching')
            for flags in ((), ('--speculative-config', '{"method": "mtp", "num_speculative_tokens": 3, "adaptive": false}'),
                          ('--speculative-config', '{"method": "mtp"}', '--draft-vocab', 'full', '--block-size', '1', '--checkpoint-interval', '7'),
                          ('--speculative-config', '{"method": "ngram", "prompt_lookup_min": 1}', '--max-num-batched-tokens', '16', '--max-num-seqs', '3'),
                          ('--num-gpu-blocks-override', '10', '--block-size', '8', '--num-state-slots', '4', '--max-model-len', '200')):
                self.assertEqual(self.bodies(rows, model, *flags), plain, flags)

    def test_run_batch_counts_cached_tokens_and_drafts(self):
        shared = list(range(5, 105))
        rows = [completion(str(i), prompt=shared + [200 + i], max_tokens=4, temperature=0, ignore_eos=True) for i in range(4)]
        salted = [{**row, 'body': {**row['body'], 'cache_salt': row['custom_id']}} for row in rows]
        for model in 'demo:qwen3_5', 'demo:bailing':
            def cached(rows, *flags):
                flags = model, '--max-num-seqs', '1', *flags
                usages = [line['response']['body']['usage'] for line in self.batch(rows, *flags)]
                return [usage['prompt_tokens_details']['cached_tokens'] for usage in usages]
            found = cached(rows)
            self.assertEqual(found[0], 0)
            self.assertEqual(found[-1], 100)
            again = cached([rows[0], {**rows[0], 'custom_id': 'again'}])
            self.assertEqual(again, [0, 100], 'a token is left to run')
            for none in cached(rows, '--no-enable-prefix-caching'), cached(salted), cached(rows, '--checkpoint-bytes', '0'):
                self.assertEqual(none, [0, 0, 0, 0])
            config = '{"method": "mtp", "num_speculative_tokens": 2, "adaptive": false}'
            for line in self.batch(rows, model, '--speculative-config', config):
                speculation = line['response']['body']['usage']['completion_tokens_details']['speculation']
                self.assertGreater(speculation['drafted'], 0)
                self.assertLessEqual(speculation['accepted'], speculation['drafted'])
                self.assertEqual(sum(speculation['drafted_per_position']), speculation['drafted'])

    def test_run_batch_keeps_states_where_messages_end(self):
        model = self.folder / 'model'
        shutil.copytree(ROOT / 'demo' / 'demo-qwen3_5', model)
        (model / 'chat_template.jinja').write_text(
            '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
            '{% if add_generation_prompt %}<|im_start|>assistant\n<think>\nLet me see.{% endif %}')
        talk = [{'role': 'user', 'content': 'What is 2 + 3?'}, {'role': 'assistant', 'content': '5'}, {'role': 'user', 'content': 'And 4 + 4?'}]
        fields = {'max_tokens': 2, 'temperature': 0, 'return_token_ids': True}
        lines = self.batch([chat('first', messages=talk[:1], **fields), chat('second', messages=talk, **fields)], str(model), '--max-num-seqs', '1')
        first, second = (line['response']['body'] for line in lines)
        common = len(os.path.commonprefix([first['prompt_token_ids'], second['prompt_token_ids']]))
        self.assertLess(common, len(first['prompt_token_ids']) - 1, 'the next turn does not go on where the first prompt ended')
        cached = second['usage']['prompt_tokens_details']['cached_tokens']
        end = json.loads(self.ok('tokenize', '--json', '<|im_end|>\n'))['ids']
        self.assertEqual(second['prompt_token_ids'][cached - len(end):cached], end)

    def test_run_batch_errors(self):
        fine = dict(max_tokens=2, temperature=0)
        long = list(range(5, 25)) * 2
        cases = ((400, 'line 1', 'broken'), (400, 'custom_id', {'method': 'POST', 'url': '/v1/completions', 'body': {}}),
                 (400, 'method', {**completion('a', **fine), 'method': 'GET'}), (400, 'url', request('a', '/v1/foo', **fine)),
                 (400, 'body', {**completion('a'), 'body': 5}), (400, 'prompt', request('a', '/v1/completions', **fine)),
                 (400, 'prompt', completion('a', prompt=[], **fine)), (400, 'prompt', completion('a', prompt=['a', [5]], **fine)),
                 (400, 'prompt', completion('a', prompt=[[5], []], **fine)), (400, 'outside the vocabulary', completion('a', prompt=[9999999], **fine)),
                 (400, 'prompt', completion('a', prompt=[-1], **fine)), (400, 'temperature', completion('a', temperature='x')),
                 (400, 'temperature', completion('a', temperature=-1)), (400, 'max_tokens', completion('a', max_tokens=0)),
                 (400, 'maximum context length is 30 tokens', completion('a', prompt=long, **fine)),
                 (400, 'maximum context length', completion('a', prompt=[5], max_tokens=30)),
                 (404, 'does not exist', completion('a', model='other', **fine)), (400, 'stream', completion('a', stream=True, **fine)),
                 (400, 'best_of', completion('a', best_of=2, **fine)), (400, 'priority', completion('a', priority=1, **fine)),
                 (400, 'guided_json', completion('a', guided_json=5, **fine)),
                 (400, 'uniqueItems', completion('a', guided_json={'type': 'array', 'uniqueItems': True}, **fine)),
                 (400, 'response_format', chat('a', response_format={'type': 'xml'}, **fine)),
                 (400, 'messages', request('a', '/v1/chat/completions', **fine)), (400, 'messages', chat('a', messages=[5], **fine)),
                 (400, 'without a URL', chat('a', messages=[{'role': 'user', 'content': [{'type': 'image_url'}]}], **fine)),
                 (400, 'roles', chat('a', messages=[{'role': 'nobody', 'content': 'x'}], **fine)),
                 (400, 'top_logprobs', chat('a', top_logprobs=2, **fine)), (400, 'tool_choice', chat('a', tool_choice='required', **fine)),
                 (400, 'no token is left', completion('a', prompt=[5], allowed_token_ids=[40], bad_words_ids=[[40]], **fine)),
                 (400, 'dimensions', request('a', '/v1/embeddings', input='a', dimensions=3)),
                 (400, 'encoding_format', request('a', '/v1/embeddings', input='a', encoding_format='x')))
        rows = [case[2] for case in cases]
        rows.insert(5, completion('good', **fine))
        lines = self.batch(rows, '--max-model-len', '30')
        good = lines.pop(5)
        self.assertEqual((good['custom_id'], good['response']['status_code'], good['error']), ('good', 200, None))
        for (status, words, row), line in zip(cases, lines):
            self.assertEqual(line['custom_id'], row.get('custom_id') if isinstance(row, dict) else None)
            error = line['response']['body']['error']
            self.assertEqual((line['response']['status_code'], line['error']), (status, error), row)
            self.assertEqual(sorted(error), ['code', 'message', 'param', 'type'])
            self.assertIn(words, error['message'], row)

    def test_run_batch_keeps_the_form_that_is_asked_for(self):
        schema = {'type': 'object', 'properties': {'age': {'enum': ['old', 'new']}, 'sure': {'type': 'boolean'}}, 'required': ['age', 'sure'],
                  'additionalProperties': False}
        fine = dict(max_tokens=60, temperature=0)
        rows = [chat('schema', response_format={'type': 'json_schema', 'json_schema': {'name': 'n', 'strict': True, 'schema': schema}}, **fine),
                completion('choice', prompt='It is', structured_outputs={'choice': ['ancient', 'new']}, **fine),
                completion('regex', prompt='It is', guided_regex='[0-9]{3}', max_tokens=60, temperature=1, seed=3, n=2)]
        for flags in (), ('--max-num-seqs', '3', '--speculative-config', '{"method": "mtp", "num_speculative_tokens": 3}'):
            bodies = self.bodies(rows, *flags)
            value = json.loads(bodies['schema']['choices'][0]['message']['content'])
            self.assertIn(value['age'], ('old', 'new'))
            self.assertIsInstance(value['sure'], bool)
            self.assertIn(bodies['choice']['choices'][0]['text'], ('ancient', 'new'))
            for one in bodies['regex']['choices']:
                self.assertRegex(one['text'], '^[0-9]{3}$')
                self.assertEqual(one['finish_reason'], 'stop')

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

    def test_run_batch_logprobs_and_echo(self):
        rows = [completion('one', prompt='Hello there', max_tokens=3, temperature=0, logprobs=2, return_token_ids=True),
                completion('echo', prompt='Hello there', max_tokens=3, temperature=0, logprobs=2, echo=True),
                completion('scored', prompt='Hello there', max_tokens=0, temperature=0, logprobs=0, echo=True, return_token_ids=True),
                completion('prompt', prompt='Hello there', max_tokens=1, temperature=0, prompt_logprobs=1, return_token_ids=True),
                completion('named', prompt='Hello there', max_tokens=3, temperature=0, logprobs=2, return_tokens_as_token_ids=True),
                chat('chat', max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)]
        bodies = {name: body['choices'][0] for name, body in self.bodies(rows).items()}
        one, echo, scored = bodies['one'], bodies['echo'], bodies['scored']
        generated = json.loads(self.ok('generate', '--raw', 'Hello there', '--json', *GREEDY, '--logprobs', '2'))
        self.assertEqual(''.join(entry['token'] for entry in generated['logprobs']), generated['text'])
        for entry in generated['logprobs']:
            self.assertEqual(bytes(entry['bytes']).decode(), entry['token'])
        logprobs = one['logprobs']
        self.assertEqual(logprobs['token_logprobs'], [entry['logprob'] for entry in generated['logprobs']])
        self.assertEqual(''.join(logprobs['tokens']), one['text'])
        self.assertEqual(logprobs['text_offset'], [sum(map(len, logprobs['tokens'][:i])) for i in range(3)])
        self.assertEqual([len(top) for top in logprobs['top_logprobs']], [2, 2, 2])
        size = len(one['prompt_token_ids'])
        self.assertEqual(echo['text'], 'Hello there' + one['text'])
        self.assertEqual((echo['logprobs']['token_logprobs'][0], echo['logprobs']['token_logprobs'][size:]), (None, logprobs['token_logprobs']))
        self.assertEqual(len(echo['logprobs']['tokens']), size + 3)
        self.assertEqual((scored['text'], scored['token_ids'], scored['logprobs']['token_logprobs']),
                         ('Hello there', [], echo['logprobs']['token_logprobs'][:size]))
        prompt = bodies['prompt']['prompt_logprobs']
        self.assertEqual((len(prompt), prompt[0]), (size, None))
        for i in range(1, size):
            self.assertEqual(prompt[i][str(one['prompt_token_ids'][i])]['logprob'], echo['logprobs']['token_logprobs'][i])
        self.assertEqual(bodies['named']['logprobs']['tokens'], [f'token_id:{i}' for i in one['token_ids']])
        for entry in bodies['chat']['logprobs']['content']:
            self.assertEqual((len(entry['top_logprobs']), entry['top_logprobs'][0]['token'], entry['top_logprobs'][0]['logprob']),
                             (2, entry['token'], entry['logprob']))
            self.assertEqual(bytes(entry['bytes']).decode(), entry['token'])

    def test_run_batch_fields(self):
        tokens = dict(prompt=[5, 6, 7], max_tokens=6, temperature=0, return_token_ids=True)
        rows = [completion('plain', **tokens), completion('allowed', allowed_token_ids=[40, 41], **tokens),
                completion('last', **{**tokens, 'prompt': [9, 9, 5, 6, 7]}, truncate_prompt_tokens=3), completion('salt', cache_salt='x', **tokens),
                completion('alone', skip_reading_prefix_cache=True, user='me', **tokens),
                chat('thinking', max_tokens=12, temperature=0, thinking_token_budget=0, return_token_ids=True, chat_template_kwargs={'enable_thinking': True}),
                request('red', '/v1/embeddings', input=['red', 'blue']), request('raw', '/v1/embeddings', input='red', normalize=False, encoding_format='base64')]
        bodies = self.bodies(rows, '--served-model-name', 'mine', '--served-model-name', 'other')
        plain = bodies['plain']['choices'][0]['token_ids']
        self.assertLessEqual(set(bodies['allowed']['choices'][0]['token_ids']), {40, 41})
        for name in 'last', 'salt', 'alone':
            self.assertEqual(bodies[name]['choices'][0]['token_ids'], plain, name)
        end = json.loads(self.ok('tokenize', '--json', '</think>'))['ids'][0]
        self.assertEqual(bodies['thinking']['choices'][0]['token_ids'][0], end)
        self.assertEqual({body['model'] for body in bodies.values()}, {'mine'})
        red, ids = (row['embedding'] for row in bodies['red']['data'])
        self.assertAlmostEqual(sum(x * x for x in red), 1, places=5)
        self.assertEqual(len(red), len(ids))
        import base64
        raw = base64.b64decode(bodies['raw']['data'][0]['embedding'])
        raw = struct.unpack(f'<{len(raw) // 4}f', raw)
        scale = sum(x * x for x in raw) ** -0.5
        for a, b in zip(red, raw):
            self.assertAlmostEqual(a, b * scale, places=5)

    def test_run_batch_priority(self):
        rows = [completion(str(i), prompt=[5, 6, 7 + i], max_tokens=4, temperature=0, priority=-i) for i in range(4)]
        self.bodies(rows, '--scheduling-policy', 'priority', '--max-num-seqs', '1')

    def test_run_batch_streams(self):
        row = json.dumps(completion('a', max_tokens=2, temperature=0))
        out = self.ok('run-batch', '-i', '-', '-o', '-', stdin=f'\n{row}\n  \n{row}')
        self.assertEqual([json.loads(line)['custom_id'] for line in out.splitlines()], ['a', 'a'])
        self.assertEqual(self.ok('run-batch', '--input-file', '-', '--output-file=-'), '', 'no request, no answer')
        path = self.batch_file([row])
        self.fails(1, 'cannot read /nowhere', 'run-batch', '-i', '/nowhere', '-o', '-')
        self.fails(1, 'cannot write /nowhere/x', 'run-batch', '-i', path, '-o', '/nowhere/x')
        self.fails(2, 'same file', 'run-batch', '-i', path, '-o', path)
        self.fails(2, '--output-file', 'run-batch', '-i', path)
        self.fails(2, '-i needs a value', 'run-batch', '-o', 'x', '-i')
        with open('/dev/full', 'wb') as full:
            self.fails(1, 'cannot write standard output', 'run-batch', '-i', path, '-o', '-', stdout=full)
        done = self.run_program('run-batch', '-i', self.batch_file([completion('a', max_tokens=1, foo=1), completion('b', max_tokens=1, foo=1)]), '-o', '-')
        self.assertEqual(done.err.count('"foo"'), 1, 'an unknown field is named once')

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
        long = 'a/b ' * 2000
        self.assertEqual(self.ok('tokenize', long), self.ok('tokenize', stdin=long), 'no name of a file or a model')
        tokenizer = self.folder / 'tokenizer'
        tokenizer.mkdir()
        shutil.copy(ROOT / 'demo' / 'demo-bailing' / 'tokenizer.json', tokenizer)
        cached = self.folder / 'hub' / 'models--some--model'
        (cached / 'refs').mkdir(parents=True)
        (cached / 'refs' / 'main').write_text('1')
        shutil.copytree(ROOT / 'demo' / 'demo-bailing', cached / 'snapshots' / '1')
        ids = self.ok('tokenize', 'demo:bailing', 'hi there')
        for model in str(tokenizer), 'some/model':
            cache = {**ENVIRONMENT, 'HF_HUB_CACHE': str(self.folder / 'hub')}
            self.assertEqual(self.ok('tokenize', model, stdin='hi there', env=cache), ids, model)
        fifo = str(self.folder / 'fifo')
        os.mkfifo(fifo)
        with subprocess.Popen(['/bin/sh', '-c', f'printf hi > {fifo}']):
            self.assertEqual(self.ok('generate', '--file', fifo, *GREEDY), answer)
        self.fails(2, 'given twice', 'generate', '--file', prompt, '--prompt-ids', '1')
        self.fails(2, 'given twice', 'generate', '--file', prompt, 'demo:qwen3_5', 'hi')
        self.fails(2, 'one word too many: c;', 'generate', 'a', 'b', 'c')
        self.fails(2, '2 words too many: c d', 'generate', 'a', 'b', 'c', 'd')
        self.fails(2, 'one word too many: b', 'inspect', 'a', 'b')
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
                            ("seed: 'it''s'  # x", ("got it's",)),
                            ('no-thinking: true\nenable-thinking: true', ('line 2', 'no-thinking or enable-thinking')), ('seed: "\\u005b#"', ('got [#',))):
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
        chat = subprocess.Popen([PROGRAM, 'chat', *GREEDY, '--max-num-batched-tokens', '1', '--max-model-len', '32768'],
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
            os.execve(PROGRAM, [PROGRAM, 'chat', str(ROOT / 'demo' / 'demo-qwen3_5') + '/', *GREEDY], {**ENVIRONMENT, 'LC_ALL': 'C', 'TERM': 'dumb'})
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

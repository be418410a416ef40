#!/usr/bin/env python3
"""The command line as people and scripts meet it: what is wrong with models and flags, and says so; odd streams; where prompts and flags come from.

    cli_test.py PROGRAM
"""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

from cli_harness import ENVIRONMENT, GREEDY, LIMITS, ROOT, CliCase, Program, main


class Cli(CliCase):
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
        chat = subprocess.Popen([Program.path, 'chat', *GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
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


if __name__ == '__main__':
    sys.exit(main())

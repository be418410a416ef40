#!/usr/bin/env python3
"""The command line as people and scripts meet it: run-batch.

    cli_batch_test.py PROGRAM
"""
import json
import os
import shutil
import struct
import sys

from cli_harness import GREEDY, ROOT, CliCase, main


def request(custom_id, url, **body):
    return {'custom_id': custom_id, 'method': 'POST', 'url': url, 'body': body}


def completion(custom_id, **body):
    return request(custom_id, '/v1/completions', **{'prompt': 'Hello', **body})


def chat(custom_id, **body):
    return request(custom_id, '/v1/chat/completions', **{'messages': [{'role': 'user', 'content': 'What is 2 + 3?'}], **body})


class CliBatch(CliCase):
    def test_fewer_sequences_when_memory_is_short(self):
        path = self.batch_file([completion(str(i), max_tokens=2, temperature=0) for i in range(3)])
        many = '60000', '--max-num-batched-tokens', '60000'
        done = self.run_program('run-batch', '-i', path, '-o', '-', '--max-num-seqs', *many)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertIn('60000 sequences at once do not fit into memory', done.err)
        self.assertEqual(len(done.out.splitlines()), 3)

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

    def cached(self, rows, *flags):
        """Tokens of each prompt, run one after the other, that had been computed."""
        usages = [line['response']['body']['usage'] for line in self.batch(rows, *flags, '--max-num-seqs', '1')]
        return [usage['prompt_tokens_details']['cached_tokens'] for usage in usages]

    def test_run_batch_keeps_states_on_the_host_alone(self):
        row = completion('a', prompt=list(range(5, 105)), max_tokens=4, temperature=0)
        for model in 'demo:qwen3_5', 'demo:bailing':
            for host, kept in ('64M', 99), ('1K', 0), ('0', 0):  # a state takes more than 1 KiB
                flags = '--max-model-len', '200', '--checkpoint-bytes', '0', '--host-checkpoint-bytes', host  # pages for state and sequence
                self.assertEqual(self.cached([row, row], model, *flags), [0, kept], (model, host))

    def test_run_batch_keeps_so_many_states_of_a_prompt(self):
        rows = [completion(str(i), prompt=list(range(5, 65)) + [200 + i] * 40, max_tokens=4, temperature=0) for i in range(2)]
        for model in 'demo:qwen3_5', 'demo:bailing':
            # One before the prompt's end, which is of no use to the other prompt; then those of the interval, 25 and 50.
            for most, found in ('0', 0), ('1', 0), ('2', 25), ('3', 50):
                flags = '--checkpoint-interval', '25', '--checkpoints-per-prompt', most
                self.assertEqual(self.cached(rows, model, *flags), [0, found], (model, most))
            again = [rows[0], {**rows[0], 'custom_id': 'again'}]
            for most, found in ('0', 0), ('1', 99):
                flags = '--checkpoint-interval', '0', '--checkpoints-per-prompt', most
                self.assertEqual(self.cached(again, model, *flags), [0, found], (model, most))

    def test_run_batch_counts_cached_tokens_and_drafts(self):
        shared = list(range(5, 105))
        rows = [completion(str(i), prompt=shared + [200 + i], max_tokens=4, temperature=0, ignore_eos=True) for i in range(4)]
        salted = [{**row, 'body': {**row['body'], 'cache_salt': row['custom_id']}} for row in rows]
        for model in 'demo:qwen3_5', 'demo:bailing':
            def cached(rows, *flags):
                return self.cached(rows, model, *flags)
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


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""`serve` and bodies that are long, huge or odd. Rows H8, H12 and H13 of the acceptance table.

    server_bodies_test.py HASH_SERVER [--full] [tests]
"""
import json
import pathlib
import re
import socket
import sys
import time

import faults_harness
from faults_harness import WithServer, quantity
from serve_harness import MODEL, chat, completion
from swarm import events_of, parse, post

COMMON = (
    'model n temperature top_k top_p min_p seed repetition_penalty frequency_penalty presence_penalty logit_bias allowed_token_ids bad_words max_tokens '
    'min_tokens stop stop_token_ids ignore_eos include_stop_str_in_output logprobs prompt_logprobs detokenize skip_special_tokens thinking_token_budget '
    'repetition_detection priority cache_salt request_id return_token_ids return_tokens_as_token_ids add_special_tokens truncate_prompt_tokens '
    'response_format structured_outputs guided_json guided_regex guided_choice guided_grammar stream stream_options user metadata').split()
FIELDS = {
    '/v1/completions': COMMON + 'prompt echo best_of suffix use_beam_search prompt_embeds'.split(),
    '/v1/chat/completions': COMMON + ('messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls chat_template chat_template_kwargs '
                                      'reasoning_effort documents add_generation_prompt continue_final_message include_reasoning functions').split(),
    '/v1/embeddings': 'model input encoding_format dimensions normalize user truncate_prompt_tokens'.split(),
    '/tokenize': 'prompt messages content add_special add_special_tokens return_token_strs tools chat_template_kwargs'.split()}
USUAL = {
    '/v1/completions': completion(max_tokens=2), '/v1/chat/completions': chat(max_tokens=2), '/v1/embeddings': {'model': MODEL, 'input': 'x'},
    '/v1/responses': {'model': MODEL, 'input': 'x', 'max_output_tokens': 2}, '/v1/messages': {**chat(max_tokens=2)},
    '/v1/messages/count_tokens': {'model': MODEL, 'messages': chat()['messages']}, '/tokenize': {'prompt': 'x'}, '/detokenize': {'tokens': [1]}}


class Bodies(WithServer):
    # H8

    def test_prompts_around_the_limit(self):
        limit = self.server.ok('/v1/models')['data'][0]['max_model_len']
        for i in range(quantity(2, 125)):
            for length, status in ((limit - 1, 200), (limit, 400), (limit + 1, 400), (10 * limit, 400)):
                for stream in (False, True):
                    got, _, text = self.server.ask('/v1/completions', completion(prompt=[7 + i] * length, max_tokens=1, stream=stream))
                    self.assertEqual(got, status, (length, text[:300]))
                    if status == 400:
                        message = self.fault_of(got, text)['message']
                        self.assertIn(f'length is {limit} tokens', message)
                        self.assertIn(f'({length} in the prompt', message)
        self.assertEqual(self.server.ask('/v1/completions', completion(prompt='word ' * (12 << 18), max_tokens=1))[0], 400)  # 15 MiB
        for _ in range(quantity(1, 10)):
            self.assertEqual(int(self.server.raw(post('/v1/completions', b' ' * (60 << 20)))[9:12]), 413)

    # H12, H13

    def test_huge_parameters_are_refused_before_memory_is_taken(self):
        many = quantity(10**5, 10**6)
        huge = {'n': 10**9, 'best_of': 10**9, 'prompt': ['x'] * many, 'logit_bias': {str(i): 1 for i in range(many)}, 'stop': ['ab'] * 10**5,
                'stop_token_ids': [1] * many, 'bad_words': ['ab'] * 10**5, 'allowed_token_ids': [1] * many, 'logprobs': 10**9, 'top_logprobs': 10**9,
                'prompt_logprobs': 10**9, 'max_tokens': 10**12, 'min_tokens': 10**9, 'tools': [{}] * 10**5, 'messages': [{}] * 10**5, 'input': ['x'] * many}
        for path, usual in (('/v1/completions', completion()), ('/v1/chat/completions', chat()), ('/v1/embeddings', {'model': MODEL, 'input': 'x'})):
            for field, value in huge.items():
                resident, data = self.resident(), post(path, {**usual, field: value})
                reply = self.server.raw(data)
                status, _, body = parse(reply)
                self.assertLess(status, 500, (path, field))
                if status == 200:
                    self.assertFalse('max_tokens' in usual and field in ('n', 'best_of', 'logprobs'), (path, field))
                else:
                    self.fault_of(status, body)
                self.assertLess(self.resident() - resident, 2 * len(data) + (16 << 20), (path, field))
        self.ask_for_much_in_every_field(many)

    def test_no_body_takes_much_more_than_its_values_may(self):
        """Of the largest bodies there may be: what they take while they are read, too."""
        most = 1 << 20  # values
        for text, wanted in ((b'[' + b'1,' * (5 << 20) + b'1]', 400), (b'[' + b'{},' * (5 << 20) + b'1]', 400), (b'[' + b'7,' * (3 << 20) + b'1]', 400),
                             (b'{' + b'"":1,' * (2 << 20) + b'"":1}', 400),
                             (b'"' + b',' * (15 << 20) + b'"', 200), (b'[' + b'7,' * (most - 10) + b'1]', 200)):
            data = b'{"model": "%s", "max_tokens": 1, "ignored": %s, "prompt": "x"}' % (MODEL.encode(), text)
            pathlib.Path(f'/proc/{self.server.process.pid}/clear_refs').write_text('5')  # the most begins anew
            before, resident = self.server.most_resident_bytes(), self.resident()
            status, _, reply = self.server.ask('/v1/completions', data)
            self.assertEqual(status, wanted, reply[:300])
            taken = self.server.most_resident_bytes() - before
            print(f'{len(data) >> 10} KiB, {status}: {taken >> 10} KiB at most, {(self.resident() - resident) >> 10} KiB after', flush=True)
            self.assertLess(taken, 2 * len(data) + (16 << 20) + (75 * most if wanted == 200 else 0))

    def ask_for_much_in_every_field(self, many):
        """Of every route that takes a body, as /openapi.json says."""
        values = (10**9, ['x'] * many, [1] * many, {str(i): 1 for i in range(many)}, 'y' * many)
        usual = {'model': MODEL, 'max_tokens': 2, 'prompt': 'x', 'input': 'x', 'tokens': [1], 'messages': [{'role': 'user', 'content': 'x'}]}
        paths, asked = self.server.ok('/openapi.json')['paths'], 0
        for path in paths:
            if 'requestBody' not in paths[path].get('post', {}):
                continue
            schema = paths[path]['post']['requestBody']['content']['application/json']['schema']
            least = {name: usual[name] for name in schema.get('required', [])} or {'prompt': 'x'}
            if 'store' in schema['properties']:
                least['store'] = False  # what is kept is not given back
            for i, (name, value) in enumerate((name, value) for name in schema['properties'] for value in values):
                if i % quantity(17, 3):
                    continue
                resident, data = self.resident(), post(path, {**least, name: value})
                status, _, body = parse(self.server.raw(data))
                self.assertIn(status, (200, 400, 404, 413), (path, name, body[:300]))
                self.assertLess(self.resident() - resident, 2 * len(data) + (16 << 20), (path, name))
                asked += 1
        print(f'{asked} huge values', flush=True)

    def check_events(self, path, text):
        if path in ('/v1/completions', '/v1/chat/completions'):
            events_of(text)
            return
        events = [json.loads(line[6:]) for line in text.decode('utf-8').split('\n') if line.startswith('data: ')]
        self.assertIn(events[-1]['type'], ('response.completed', 'response.incomplete', 'message_stop'))

    def test_every_field_with_every_value(self):
        """The fields that /openapi.json has, and those that are refused."""
        document = self.server.ok('/openapi.json')
        vocabulary = document['components']['schemas']['TokenId']['maximum'] + 1
        values = ('missing', None, 'x', [], {}, [[]], True, -1, 0, 2**31, 2**63, 2**64, -0.0, 1.5, '', 'y' * 100_000, '\ud800', [None], {'a': None}, '1e400', 'NaN', 'Infinity', [-1], [2**31],
                  [vocabulary - 1], [vocabulary], [vocabulary + 4096], {str(vocabulary): 1}, {str(vocabulary - 1): 1})
        steps, asked = self.server.metric('calandra:steps_total'), 0
        for path, usual in USUAL.items():
            schema = document['paths'][path]['post']['requestBody']['content']['application/json']['schema']
            for i, name in enumerate(sorted({*schema['properties'], *FIELDS.get(path, ())})):
                for j, value in enumerate(values):
                    if not faults_harness.FULL and (i + j) % 6:
                        continue
                    body = {**usual, name: value}
                    if value == 'missing':
                        del body[name]
                    data = json.dumps(body).replace('"1e400"', '1e400').replace('"NaN"', 'NaN').replace('"Infinity"', 'Infinity').encode()
                    status, headers, text = self.server.ask(path, data)
                    asked += 1
                    self.assertIn(status, (200, 400, 404), (path, name, str(value)[:50], text[:300]))
                    if status != 200:
                        self.fault_of(status, text)
                    elif headers['Content-Type'] == 'text/event-stream':
                        self.check_events(path, text)
                    else:
                        json.loads(text.decode('utf-8'))
        print(f'{asked} odd bodies', flush=True)
        self.assertGreater(self.server.metric('calandra:steps_total'), steps)


class LargeBodies(WithServer):
    """H8 where bodies of 60 MiB may come."""
    FLAGS = (*WithServer.FLAGS, '--max-body-bytes', str(64 << 20))

    def test_long_texts_are_refused_with_their_count(self):
        limit = self.server.ok('/v1/models')['data'][0]['max_model_len']
        for word in 'word ', ' ', '中', 'x':
            for mebibytes in quantity((1, 3), (1, 15, 60)):
                text = word * ((mebibytes << 20) // len(word.encode()))
                kinds = (('/v1/completions', completion(prompt=text)), ('/v1/chat/completions', chat(messages=[{'role': 'user', 'content': text}])))
                for path, body in kinds[:2 if mebibytes == 1 and word != ' ' else 1]:  # templates have their own limit, of 16 MiB, and drop spaces
                    data = json.dumps(body, ensure_ascii=False).encode()
                    with socket.create_connection(('127.0.0.1', self.server.port), timeout=300) as one:
                        one.sendall(post(path, data))
                        sent, reply = time.monotonic(), b''
                        while part := one.recv(1 << 16):
                            reply += part
                        seconds = time.monotonic() - sent
                    status, _, text_of_fault = parse(reply)
                    self.assertEqual(status, 400)
                    message = self.fault_of(status, text_of_fault)['message']
                    self.assertIn(f'length is {limit} tokens', message)
                    self.assertGreater(int(re.search(r'has at least (\d+)', message).group(1)), limit)
                    print(f'{word!r} {mebibytes} MiB {path}: refused after {1000 * seconds:.0f} ms', flush=True)


if __name__ == '__main__':
    sys.exit(faults_harness.main())

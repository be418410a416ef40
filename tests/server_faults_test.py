#!/usr/bin/env python3
"""`serve` under faults and load: clients that leave, do not read, flood, smuggle and hang; ends under load. Rows H1-H13, C8, C11,
C12 and P1 of the acceptance table, with a bounded part of their quantities by default.

    server_faults_test.py HASH_SERVER [--full] [tests]

Behind the server is the hash model (tests/hashsim): every answer that survives is compared with that of its request alone, and a
mix-up of any state would change it. Nothing is asserted about time; loops that wait are bounded.
"""
import base64
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import gtest_report
import serve_harness
from serve_harness import MODEL, Server, chat, completion
from swarm import Client, Swarm, events_of, get, parse, post

FULL = False
PICTURES = [path.read_bytes() for path in sorted((serve_harness.ROOT / 'demo' / 'demo-qwen3_5' / 'images').glob('shapes_*.png'))]
WORDS = ('Once upon a time', 'Word ' * 9, '语言 👋 é', '{"a": [1, 2]}', 'x' * 300, 'The quick brown fox. ' * 20)
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
INNER = ('/work', '/home', '/tmp', '/usr', '.cc', '.h:', 'std::', 'boost', 'tensor', '0x', 'bad_alloc', 'terminate')  # C12


def quantity(part, whole):
    return whole if FULL else part


def body_of(i, **more):
    """Request number i of the usual mix: its path and its body."""
    body = {'temperature': 1.0, 'seed': i, 'max_tokens': 3 + i % 23, 'ignore_eos': i % 2 == 0, **more}
    if i % 4 == 3:
        return '/v1/chat/completions', chat(messages=[{'role': 'user', 'content': WORDS[i % len(WORDS)]}], **body)
    return '/v1/completions', completion(prompt=WORDS[i % len(WORDS)], **body)


def picture_chat(i, **more):
    """A chat that shows a picture of its own: bytes behind its end make it another file, which is decoded anew."""
    url = 'data:image/png;base64,' + base64.b64encode(PICTURES[i % len(PICTURES)] + b'%d' % i).decode()
    return chat(messages=[{'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': url}}, {'type': 'text', 'text': 'What?'}]}], **more)


def told(status, body, is_stream):
    """What the user of an answer gets: its text and why it ended."""
    assert status == 200, (status, body[:300])
    choices = [event['choices'][0] for event in events_of(body)[0]] if is_stream else json.loads(body)['choices']
    text = ''
    for choice in choices:
        message = choice.get('delta') or choice.get('message') or {}
        text += choice.get('text') or (message.get('reasoning') or '') + (message.get('content') or '')
    return text, choices[-1]['finish_reason']


class WithServer(unittest.TestCase):
    FLAGS = ('--max-num-seqs', '16', '--no-enable-prefix-caching')
    PREFIX = ()
    LONGEST = 2048
    KINDS = 48

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.FLAGS, longest=cls.LONGEST, program=(*cls.PREFIX, serve_harness.PROGRAM))
        cls.alone = []
        for i in range(cls.KINDS):
            path, body = body_of(i)
            status, _, text = cls.server.ask(path, body)
            cls.alone.append(told(status, text, False))
        assert len(set(cls.alone)) > cls.KINDS // 2
        cls.server.ok('/v1/chat/completions', chat(max_tokens=2, response_format={'type': 'json_object'}))  # starts a thread
        time.sleep(1.5)  # ended connections are read for a moment
        cls.idle = cls.ledger()

    @classmethod
    def tearDownClass(cls):
        assert cls.server.end() == 0

    def setUp(self):
        self.assert_idle()

    def tearDown(self):
        """BASE: alive, everything given back, and a further request gets the right answer."""
        self.assert_idle()
        status, _, text = self.server.ask(*body_of(7))
        self.assertEqual(told(status, text, False), self.alone[7])
        self.until_equal(self.ledger, self.idle)
        for line in self.server.log().splitlines():
            self.assertNotIn('failed', line)

    # what is held

    @classmethod
    def ledger(cls):
        pages = cls.server.metric('vllm:kv_cache_usage_perc')
        files, threads = (len(os.listdir(f'/proc/{cls.server.process.pid}/{name}')) for name in ('fd', 'task'))
        return {'files': files, 'threads': threads, 'pages': pages}

    def resident(self):
        return self.server.resident_bytes()

    def until_equal(self, get, wanted):
        if not self.server.until(lambda: get() == wanted):
            self.assertEqual(get(), wanted)

    def assert_idle(self):
        for name in ('running', 'waiting'):
            self.assertTrue(self.server.until(lambda: self.server.metric(f'vllm:num_requests_{name}') == 0), name)

    def ended(self, reason):
        return self.server.metric('vllm:request_success_total', f'finished_reason="{reason}"')

    # clients

    def client(self, i, stream=None, **how):
        path, body = body_of(i % self.KINDS)
        return Client(post(path, {**body, 'stream': i % 3 != 0 if stream is None else stream}), **how)

    def check(self, client, i, refusals=()):
        """One that stayed has the answer of its request alone, or was refused."""
        status, headers, body = parse(client.reply)
        if status in refusals:
            self.assertIn('Retry-After', headers)
            self.fault_of(status, body)
            return False
        self.assertEqual(told(status, body, headers['Content-Type'] == 'text/event-stream'), self.alone[i % self.KINDS], i)
        return True

    def fault_of(self, status, body):
        """An error's object, which says nothing of what is inside."""
        reply = json.loads(body.decode('utf-8'))
        error = reply['error']
        if reply.get('type') == 'error':  # as Anthropic's API says it
            self.assertEqual(set(error), {'message', 'type'})
        else:
            self.assertEqual(set(error), {'message', 'type', 'param', 'code'})
        for word in INNER:
            self.assertNotIn(word, error['message'].lower(), status)
        return error

    def run_all(self, clients, at_once=64):
        Swarm(self.server.port, at_once).run(clients)


class Leavers(WithServer):
    LONGEST = serve_harness.LONGEST

    # H1

    def test_clients_that_leave_streams_end_their_work_and_nobody_elses(self):
        rng = random.Random(1)
        leaving, staying = [], []
        aborted = self.ended('abort')
        for i in range(quantity(200, 1000)):
            if i % 2:
                staying.append((i, self.client(i)))
            else:
                body = completion(**serve_harness.LONG, stream=True, n=1 + i % 3)
                leaving.append(Client(post('/v1/completions', body), leave=rng.randrange(1, 3000), how=('fin', 'rst', 'half')[i // 2 % 3]))
        everybody = leaving + [client for _, client in staying]
        rng.shuffle(everybody)
        self.run_all(everybody)
        for i, client in staying:
            self.check(client, i)
        self.assert_idle()
        self.assertEqual(self.ended('abort') - aborted, sum(1 + i % 3 for i in range(0, quantity(200, 1000), 2)))


class Faults(WithServer):
    # H2

    def test_clients_that_leave_in_any_phase(self):
        rng = random.Random(2)
        ends = {'leave': 0, 'how': 'fin'}
        long = {'max_tokens': 1900, 'ignore_eos': True}
        schema = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': {'type': 'object', 'properties': {'a': {'type': 'integer'}}}}}

        def phase(i, number):
            whole = post('/v1/completions', completion(**long, stream=True))
            head = whole.index(b'\r\n\r\n')
            data, how = {
                0: (whole[:rng.randrange(1, head)], ends),
                1: (whole[:rng.randrange(head + 4, len(whole))], ends),
                2: (whole, ends),  # in the queue: more of them than lanes
                3: (post('/v1/completions', completion(**{**long, 'prompt': 'Word ' * 1500, 'max_tokens': 20})), ends),
                4: (whole, {'leave': 2000, 'how': 'rst'}),
                5: (post('/v1/chat/completions', chat(**long, response_format=schema, stream=True)), ends),
                6: (post('/v1/completions', completion(max_tokens=1, stream=True)), {'leave': 150, 'how': 'rst'}),  # its last
                7: (post('/v1/completions', completion(**long)), ends),
                8: (post('/v1/chat/completions', picture_chat(rng.randrange(10**9), **long, stream=i % 2 == 0)), ends),
            }[number]
            return Client(data, **how)
        clients = [phase(i, i % 9) for i in range(9 * quantity(20, 200))]
        staying = [(i, self.client(i)) for i in range(64)]
        pictures = [picture_chat(i, max_tokens=9, seed=i, temperature=1.0) for i in range(8)]
        shown = [(told(*self.server.ask('/v1/chat/completions', body)[::2], False), Client(post('/v1/chat/completions', body))) for body in pictures]
        self.assertGreater(len({wanted for wanted, _ in shown}), 4)
        everybody = clients + [client for _, client in staying + shown]
        rng.shuffle(everybody)
        self.run_all(everybody, 96)
        for i, client in staying:
            self.check(client, i)
        for wanted, client in shown:
            self.assertEqual(told(*parse(client.reply)[::2], False), wanted)

    # H3

    def open_slow(self, data):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        one.connect(('127.0.0.1', self.server.port))
        one.sendall(data)
        return one

    def run_normal(self):
        normal = [(i, self.client(i)) for i in range(96)]
        self.run_all([client for _, client in normal], 32)
        for i, client in normal:
            self.check(client, i)

    def test_readers_that_do_not_read_delay_nobody(self):
        long = chat(max_tokens=1900, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20, n=2)
        slow = [self.open_slow(post('/v1/chat/completions', long)) for _ in range(3)]
        self.run_normal()
        answers = set()
        for one in slow[1:]:  # who reads in the end has all of it; the first never does
            reply = bytearray()
            while part := one.recv(1 << 16):
                reply += part
            texts = {}
            for event in events_of(parse(reply)[2])[0]:
                choice = event['choices'][0]
                texts[choice['index']] = texts.get(choice['index'], '') + (choice['delta'].get('content') or '')
            answers.add(tuple(sorted(texts.items())))
        self.assertEqual(len(answers), 1)
        self.assertGreater(len(reply), 5 << 20)  # more than the buffers of a connection
        for one in slow:
            one.close()

    def test_slow_readers_delay_nobody_and_get_all(self):
        resident = self.resident()
        slow = [(i, bytearray(), self.open_slow(self.client(i, stream=True).data)) for i in range(quantity(20, 500))]
        over = threading.Event()

        def trickle():
            while not over.wait(0.2):
                for _, reply, one in slow:
                    try:
                        reply += one.recv(10, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        pass
        reader = threading.Thread(target=trickle)
        reader.start()
        try:
            self.run_normal()
        finally:
            over.set()
            reader.join()
        self.assertLess(self.resident() - resident, 256 << 20)
        for i, reply, one in slow:
            while part := one.recv(1 << 16):
                reply += part
            status, _, body = parse(reply)
            self.assertEqual(told(status, body, True), self.alone[i % self.KINDS], i)
            one.close()

    # H4

    def test_clients_that_send_nothing_delay_nobody(self):
        hanging = []
        for i in range(quantity(300, 2000)):
            one = socket.create_connection(('127.0.0.1', self.server.port))
            one.sendall(b'POST /v1/completions HTTP/1.1\r\nHost'[:i % 37])
            hanging.append(one)
        normal = [(i, self.client(i)) for i in range(96)]
        self.run_all([client for _, client in normal], 32)
        for i, client in normal:
            self.check(client, i)
        if FULL:  # the deadline of a head
            for one in hanging:
                one.settimeout(60)
                self.assertEqual(one.recv(100), b'')
        for one in hanging:
            one.close()

    # H5, H6

    def test_floods_and_smuggling(self):
        head = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
        hidden = b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n'
        chunked = b'Transfer-Encoding: chunked\r\n'
        inner = json.dumps(completion(max_tokens=1)).encode()
        small = b'%x\r\n%s\r\n' % (len(inner), inner)
        table = [
            (431, b'GET /health HTTP/1.1\r\n' + b''.join(b'a%d: b\r\n' % i for i in range(10_000)) + b'\r\n'),
            (431, b'GET /health HTTP/1.1\r\n' + b'a: b\r\n' * 101 + b'\r\n'),
            (431, b'GET /' + b'x' * (4 << 20)), (431, head + b'A: ' + b'x' * (4 << 20)),
            (400, head + b'no colon\r\n\r\n'), (400, head + b'A\0: b\r\n\r\n'), (400, head + b'A: b\0\r\n\r\n'), (400, head + b'A : b\r\n\r\n'),
            (400, head + b': b\r\n\r\n'), (400, head + b'A: b\r\n folded: c\r\n\r\n'), (400, head + b'A: b\nContent-Length: 5\r\n\r\n' + hidden),
            (400, head + b'A: b\rContent-Length: 5\r\n\r\n' + hidden), (400, b'\r\n \r\n\r\n'), (400, b'GET /health HTTP/1.1 \r\n\r\n'),
            (400, b'GET /health HTTP/2.0\r\n\r\n'), (400, b'GET  /health HTTP/1.1\r\n\r\n'), (400, b'GE T /health HTTP/1.1\r\n\r\n'),
            (400, head + b'Content-Length: 5\r\n' + chunked + b'\r\n0\r\n\r\n' + hidden),
            (400, head + chunked + b'Content-Length: 5\r\n\r\n0\r\n\r\n' + hidden), (400, head + chunked + chunked + b'\r\n0\r\n\r\n' + hidden),
            *((400, head + b'Content-Length: ' + value + b'\r\n\r\n' + hidden)
              for value in (b'-1', b'+5', b'0x5', b'5, 5', b'5 5', b'', b'5e0', b'18446744073709551621', b'99999999999999999999', b'"5"')),
            (400, head + b'Content-Length: 5\r\nContent-Length: 5\r\n\r\n' + hidden), (400, head + b'Content-Length: 5\r\nContent-Length: 0\r\n\r\n' + hidden),
            *((400, head + b'Transfer-Encoding:' + value + b'\r\n\r\n0\r\n\r\n' + hidden)
              for value in (b' gzip', b' xchunked', b' chunked, identity', b' chunked, chunked', b' identity', b'', b' chunked;a=b', b' "chunked"')),
            (400, b'POST /v1/completions HTTP/1.0\r\n' + chunked + b'\r\n0\r\n\r\n' + hidden),
            (413, head + b'Content-Length: 99999999999\r\n\r\n'), (415, head + b'Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}'),
            *((400, head + chunked + b'\r\n' + value + hidden)
              for value in (b'-1\r\n', b'0x5\r\nhello\r\n0\r\n\r\n', b'5\nhello\n0\n\n', b'g\r\n', b'fffffffffffffffff\r\n', b'5\r\nhelloX\r\n0\r\n\r\n', b' 5\r\nhello\r\n')),
            (200, head + chunked + b'Connection: close\r\n\r\n' + small + b'0\r\n\r\n'),
            (200, head + chunked + b'Connection: close\r\n\r\n' + small.replace(b'\r\n', b';a=b\r\n', 1) + b'0\r\nX: y\r\n\r\n'),
            (200, head + chunked + b'Connection: close\r\n\r\n' + b''.join(b'1\r\n%c\r\n' % c for c in inner) + b'0\r\n\r\n'),
        ]
        spaces = completion(max_tokens=1)
        padded = json.dumps(spaces).encode()[:-1] + b' ' * (500_000 if FULL else 100_000) + b'}'
        table.append((200, head + chunked + b'Connection: close\r\n\r\n' + b''.join(b'1\r\n%c\r\n' % c for c in padded) + b'0\r\n\r\n'))
        resident = self.resident()
        for repeat in range(quantity(1, 18)):
            handled = len(self.server.access())
            for status, data in table:
                reply = self.server.raw(data)
                self.assertEqual(int(reply[9:12] or 0), status, (data[:120], reply[:300]))
                self.assertEqual(reply.count(b'\r\nServer: '), 1, (data[:120], reply[:300]))
                if status != 200:
                    self.fault_of(status, reply.split(b'\r\n\r\n', 1)[1])
            self.assertEqual(len(self.server.access()) - handled, len(table))  # no second request was seen
        self.assertLess(self.resident() - resident, len(table) << 20)

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

    # H5

    def test_a_line_without_end_is_not_read_to_its_end(self):
        """A gibibyte, of which nobody takes more than what may be on its way: the request line, a field, a chunk's length."""
        begun = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
        for begin, statuses in ((b'GET /', (431,)), (begun + b'A: ', (431,)), (begun, (431,)), (begun + b'Transfer-Encoding: chunked\r\n\r\n1;', (400, 431))):
            resident = self.resident()
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=120) as one:
                one.sendall(begin)
                sent, part = len(begin), b'x' * (1 << 16)
                try:
                    while sent < 1 << 30:
                        sent += one.send(part)
                    self.fail('all of it was taken')
                except ConnectionError:
                    pass
            print(f'{begin[-8:]}: {sent >> 10} KiB could be sent', flush=True)
            self.assertLess(self.resident() - resident, 1 << 20, begin)
            reply = self.server.raw(begin + b'x' * (1 << 20))
            self.assertIn(int(reply[9:12]), statuses)

    # H9

    def test_kept_connections_pipelines_and_single_bytes(self):
        rng = random.Random(9)
        count, kinds = quantity(600, 10_000), [i for i in range(self.KINDS) if i % 4 != 3]
        while count > 0:
            sent = [kinds[rng.randrange(len(kinds))] for _ in range(rng.randrange(1, 12))]
            count -= len(sent)
            data = b''.join(post(body_of(i)[0], {**body_of(i)[1], 'stream': i % 3 == 0}).replace(b'Connection: close\r\n', b'') for i in sent)
            data = data + b'GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=120) as one:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                step = rng.choice((1, 7, 100, len(data))) if len(sent) < 4 else len(data)
                for begin in range(0, len(data), step):
                    one.sendall(data[begin:begin + step])
                reply = b''
                while part := one.recv(1 << 16):
                    reply += part
            parts = reply.split(b'HTTP/1.1 200 OK\r\n')
            self.assertEqual(len(parts), len(sent) + 2, reply[:500])
            for i, part in zip(sent, parts[1:]):
                status, headers, body = parse(b'HTTP/1.1 200 OK\r\n' + part)
                self.assertEqual(told(status, body, 'Transfer-Encoding' in headers), self.alone[i])

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
                    if not FULL and (i + j) % 6:
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

    # C8, C11

    def test_logs_are_lines_and_metrics_do_not_grow(self):
        rng = random.Random(11)
        names = ('a\\r\\nb', '\x1b[31m', '\u2028', '\u202e', 'a"b', '%0d%0a', '%ff', '%e2%80%a8', '\\', 'é')

        def series():
            return [line.rsplit(' ', 1)[0] for line in self.server.ask('/metrics')[2].decode().splitlines()]
        before, lines = series(), len(self.server.access())
        clients = []
        for i in range(quantity(1000, 100_000)):
            odd = (names[i % len(names)] + str(rng.randrange(10**9))).encode()
            head = b'%s /%s HTTP/1.1\r\nHost: x\r\nX-%d: y\r\nX-Request-Id: %s\r\nUser-Agent: %s\r\nConnection: close\r\n' % (
                (b'GET', b'POST', b'PURGE%d' % i, b'OPTIONS')[i % 4], odd.replace(b' ', b''), i, odd, odd) + b'Authorization: Bearer secret-key\r\nX-Api-Key: secret-key\r\n'
            body = json.dumps({'model': odd.decode(), 'prompt': 'secret-prompt'}).encode() if i % 4 == 1 else b''
            if i % 8 == 1:
                head = head.replace(b'/' + odd.replace(b' ', b''), b'/v1/completions', 1)
            clients.append(Client(head + b'Content-Length: %d\r\n\r\n' % len(body) + body))
        self.run_all(clients)
        for client in clients:
            status, _, body = parse(client.reply)
            self.assertIn(status, (204, 400, 404, 405, 501))
            if status != 204 and body:
                self.fault_of(status, body)
        self.assertEqual(series(), before)
        raw = pathlib.Path(self.server.access_path).read_bytes()
        self.assertGreaterEqual(len(self.server.access()) - lines, len(clients))
        for secret in b'secret-prompt', b'secret-key':
            self.assertNotIn(secret, raw + self.server.log().encode())
        for text in (raw.decode('utf-8'), self.server.log()):
            self.assertFalse([c for c in text if c != '\n' and (ord(c) < 32 or ord(c) in (0x7f, 0x2028, 0x2029, 0x202e))])


class TextLogs(unittest.TestCase):
    """C8 where access lines are texts of the log."""

    def test_a_line_is_a_line(self):
        server = Server('--api-key', 'secret-key', json_lines=False)
        odd = ('%0a%0dfaked', '%1b%5b31m', '%e2%80%a8', '%e2%80%ae', '%7f', '%ff%fe', '"', '%5c')
        before = len(server.log().splitlines())
        for path in odd:
            server.ask(f'/{path}')
            for key, status in ('secret-key', 404), ('secret-key-of-others', 401):
                got, _, text = server.ask('/v1/completions', {'model': path, 'prompt': 'secret-prompt'},
                                          headers={'X-Request-Id': path, 'User-Agent': path, 'Authorization': f'Bearer {key}'})
                self.assertEqual(got, status)
                self.assertNotIn(b'secret-key', text)
        text = pathlib.Path(server.log_path).read_bytes().decode('utf-8')
        self.assertEqual(server.end(), 0)
        self.assertEqual(len(text.splitlines()) - before, 3 * len(odd))
        self.assertFalse([c for c in text if c != '\n' and (ord(c) < 32 or ord(c) in (0x7f, 0x2028, 0x2029, 0x202e))])
        for secret in 'secret-prompt', 'secret-key':
            self.assertNotIn(secret, text)


    def test_a_log_that_nobody_reads_ends_nothing(self):
        process = subprocess.Popen([serve_harness.PROGRAM, 'serve', '--port', '0', '--max-model-len', '2048', '--json'],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=serve_harness.ENVIRONMENT)
        found = None
        while not found:
            found = re.search(rb'serving .* on http://\S+:(\d+)', process.stderr.readline())
        process.stdout.close()
        process.stderr.close()
        for _ in range(3):
            connection = http.client.HTTPConnection('127.0.0.1', int(found.group(1)), timeout=120)
            connection.request('POST', '/v1/completions', json.dumps(completion(max_tokens=2)))
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(120), 0)


class WithQueue(WithServer):
    """H7: many more at once than run or may wait."""
    FLAGS = (*WithServer.FLAGS, '--max-waiting-requests', '400')

    def test_whoever_is_accepted_is_served_and_the_rest_is_told(self):
        count, resident = quantity(1000, 10_000), self.resident()
        clients = [self.client(i) for i in range(count)]
        self.run_all(clients, count)
        served = sum(self.check(client, i, refusals=(429, 503)) for i, client in enumerate(clients))
        print(f'{served} of {count} were served, {count - served} refused', flush=True)
        self.assertGreaterEqual(served, 400)
        self.assertLess(self.resident() - resident, 1 << 30)


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


class Ends(unittest.TestCase):
    """P1: SIGTERM at random moments under load."""

    def test_the_end_under_load(self):
        rng = random.Random(21)
        bodies = [completion(prompt=WORDS[i % len(WORDS)], max_tokens=(1, 40, 290, 900, 1400)[i % 5], ignore_eos=True) for i in range(30)]
        server, alone = Server(), []
        for body in bodies:
            alone.append(told(*server.ask('/v1/completions', body)[::2], False))
        self.assertEqual(server.end(), 0)
        self.assertGreater(len(set(alone)), 20)
        whole = broken = 0
        for i in range(quantity(8, 200)):
            server = Server('--max-num-seqs', '4', '--shutdown-timeout', ('600', '0')[i % 2])
            chosen = [rng.randrange(len(bodies)) for _ in range(24)]
            clients = [Client(post('/v1/completions', {**bodies[j], 'stream': True})) for j in chosen]
            signals = [threading.Timer(rng.random() * 0.3, server.process.send_signal, [signal.SIGTERM]) for _ in range(1 + i // 2 % 2)]
            for one in signals:
                one.start()
            Swarm(server.port, 8).run(clients)
            for one in signals:
                one.join()
            self.assertEqual(server.end(), 0)
            for j, client in zip(chosen, clients):
                if not client.reply:
                    continue  # it came behind the end
                status, headers, body = parse(client.reply)
                self.assertIn(status, (200, 503))
                if status != 200:
                    continue
                events, failed = events_of(body)  # whole, or with one error at its end
                text = ''.join(event['choices'][0]['text'] for event in events if 'choices' in event)
                whole, broken = whole + (not failed), broken + failed
                if not failed:
                    self.assertEqual(told(status, body, True), alone[j])
                self.assertTrue(alone[j][0].startswith(text))
        print(f'{whole} streams to their end, {broken} ended by an error', flush=True)

    def test_signals_during_the_end_do_not_kill(self):
        for _ in range(quantity(3, 50)):
            server = Server()
            for _ in range(100_000):
                server.process.send_signal(signal.SIGTERM)
                if server.process.poll() is not None:
                    break
            self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    if '--full' in sys.argv:
        FULL = True
        sys.argv.remove('--full')
    sys.exit(gtest_report.main())

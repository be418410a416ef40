"""What the tests of the server under faults share: the hash model behind it, requests whose answers are known, and the ledger of what
an idle server holds.

    import faults_harness
    class Faults(faults_harness.WithServer): ...
    if __name__ == '__main__':
        sys.exit(faults_harness.main())    # TEST HASH_SERVER [--full] [tests]

Every answer that survives is compared with that of its request alone, and a mix-up of any state would change it (tests/hashsim).
Nothing is asserted about time; loops that wait are bounded. Without --full a bounded part of the quantities of
bench/results/server_faults.md.
"""
import base64
import json
import os
import socket
import sys
import time
import unittest

import gtest_report
import serve_harness
from serve_harness import Server, chat, completion
from swarm import Client, Swarm, events_of, parse, post

FULL = False
PICTURES = [path.read_bytes() for path in sorted((serve_harness.ROOT / 'demo' / 'demo-qwen3_5' / 'images').glob('shapes_*.png'))]
WORDS = ('Once upon a time', 'Word ' * 9, '语言 👋 é', '{"a": [1, 2]}', 'x' * 300, 'The quick brown fox. ' * 20)
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

    def open_slow(self, data):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        one.connect(('127.0.0.1', self.server.port))
        one.sendall(data)
        return one


def main():
    global FULL
    serve_harness.PROGRAM = sys.argv.pop(1)
    if '--full' in sys.argv:
        FULL = True
        sys.argv.remove('--full')
    return gtest_report.main()

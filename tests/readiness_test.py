#!/usr/bin/env python3
"""When `serve` can answer, and what it says when it cannot: while the model is loaded, when the engine stands still (row P8 of the
acceptance table), while the model sleeps. Nothing is asserted about time; loops that wait are bounded.

    readiness_test.py PROGRAM SCRIPTED_SERVER
"""
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest

import gtest_report
import serve_harness
from serve_harness import LONG, LONGEST, MODEL, ROOT, Server, chat, completion

SCRIPTS = ROOT / 'tests' / 'scripted' / 'scripts.json'
SCRIPTED = ''
STALLS = 2  # rounds; row P8 asks for 20 (CALANDRA_STALLS=20)
OPEN = ('/health', '/ping', '/version', '/load', '/metrics')
API = ('/v1/models', '/v1/chat/completions', '/v1/completions', '/v1/responses', '/v1/embeddings', '/tokenize', '/is_sleeping')


class Gate:
    """Holds up a scripted server: its load, or its steps (tests/scripted/gate.h)."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix='calandra_gate_')
        self.prefix = self.folder.name + '/gate'
        serve_harness.ENVIRONMENT['CALANDRA_TEST_GATE'] = self.prefix

    def close(self, name):
        pathlib.Path(f'{self.prefix}.{name}').touch()

    def open(self, name):
        pathlib.Path(f'{self.prefix}.{name}').unlink()

    def end(self):
        del serve_harness.ENVIRONMENT['CALANDRA_TEST_GATE']
        self.folder.cleanup()


class WithGate(unittest.TestCase):
    def setUp(self):
        self.gate = Gate()
        self.addCleanup(self.gate.end)

    def start(self, *flags, **how):
        server = Server(*flags, program=[SCRIPTED, str(SCRIPTS)], **how)
        self.addCleanup(self.kill, server)
        return server

    @staticmethod
    def kill(server):
        if server.process.poll() is None:
            server.process.kill()
        server.end()

    def fault(self, server, path, body=None):
        status, headers, text = server.ask(path, body)
        self.assertEqual((status, headers['Retry-After']), (503, '1'), (path, text))
        return json.loads(text)['error']


class Loads(WithGate):
    def test_what_is_said_while_the_model_is_loaded(self):
        self.gate.close('load')
        server = self.start(ready=False)
        for path in API:
            for body in (None, {}):
                error = self.fault(server, path, body)
                self.assertEqual((set(error), error['code']), ({'message', 'type', 'param', 'code'}, 'model_loading'))
        self.assertEqual(json.loads(server.ask('/v1/messages', {})[2])['error']['type'], 'overloaded_error')
        for path in ('/health', '/ping'):
            self.assertEqual(self.fault(server, path)['code'], 'model_loading')
        self.assertEqual(server.ok('/load'), {'server_load': 0})
        self.assertIn('version', server.ok('/version'))
        self.assertEqual(server.metric('vllm:num_requests_running'), 0)
        self.assertEqual(server.ask('/')[0], 200)
        self.assertNotIn('serving', server.log())
        self.gate.open('load')
        self.assertTrue(server.until(lambda: server.ask('/health')[0] == 200), server.log())
        server.ok('/v1/chat/completions', chat())
        self.assertTrue(server.until(lambda: f'serving {MODEL} on http://127.0.0.1:{server.port}' in server.log()))
        self.assertEqual(server.end(), 0)

    def test_a_signal_does_not_wait_for_the_load(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.gate.close('load')
            server = self.start(ready=False)
            self.assertEqual(server.end(number), 0)

    def test_a_load_that_fails_ends_the_server(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / 'scripts.json'
            file.write_text('{"no text": "for the usual answer"}')
            self.gate.close('load')
            server = Server(program=[SCRIPTED, str(file)], ready=False)
            self.assertEqual(self.fault(server, '/health')['code'], 'model_loading')
            self.gate.open('load')
            self.assertEqual(server.process.wait(timeout=120), 1)
            self.assertIn('scripts: the text', server.log())
            server.end()

    def test_keys_and_ports_are_looked_at_before(self):
        self.gate.close('load')
        server = self.start('--api-key', 'secret', ready=False)
        self.assertEqual(server.ask('/v1/models')[0], 401)
        self.assertEqual(server.ask('/v1/models', headers={'Authorization': 'Bearer secret'})[0], 503)
        with self.assertRaisesRegex(RuntimeError, f'cannot listen on 127.0.0.1 port {server.port}'):
            self.start(port=server.port)


class Stalls(WithGate):
    FLAGS = ('--engine-stall-timeout', '3', '--max-num-seqs', '2')

    def stall(self, server, streams=3):
        """Streams that were there before the engine stands still; the last one waits."""
        replies = []
        for i in range(streams):
            connection = server.connect()
            connection.request('POST', '/v1/chat/completions', json.dumps(chat(
                messages=[{'role': 'user', 'content': 'secret-prompt [[endless]]'}], **LONG, stream=True)))
            if i < 2:
                replies.append(connection.getresponse())
                replies[-1].read(300)
            else:
                self.assertTrue(server.until(lambda: server.metric('vllm:num_requests_waiting') == 1))
                replies.append(connection)
        self.gate.close('step')
        self.assertTrue(server.until(lambda: server.ask('/health')[0] == 503))
        self.assertIn('no progress', self.fault(server, '/health')['message'])
        return replies

    def check_log(self, server):
        self.assertTrue(server.until(lambda: 'request 4 choice' in server.log()), server.log())
        log = server.log()
        self.assertRegex(log, r'no step has ended for \d+ s while 3 requests are unfinished, 0 of them not looked at yet; the engine is in a step')
        self.assertRegex(log, r'step \d+: choices 2 running, 1 waiting; pages \d+ of \d+ free')
        self.assertEqual(len(re.findall(r'choice 0: running, prompt \d+, answer \d+, run \d+ tokens; [1-9]\d* pages, slot \d+, 0 drafts', log)), 2)
        self.assertRegex(log, r'choice 0: waiting, prompt \d+, answer 0, run 0 tokens; 0 pages, slot -1')
        self.assertNotIn('secret-prompt', log)

    def test_it_ends_with_status_70(self):
        for _ in range(STALLS):
            server = self.start(*self.FLAGS, '--engine-stall-grace', '2', longest=LONGEST)
            replies = self.stall(server)
            self.check_log(server)
            self.assertEqual(server.process.wait(timeout=120), 70)
            for reply in replies:
                reply.close()
            self.gate.open('step')

    def test_it_goes_on_when_steps_end_again(self):
        server = self.start(*self.FLAGS, '--engine-stall-grace', '1e6', longest=LONGEST)
        replies = self.stall(server)
        self.check_log(server)
        self.gate.open('step')
        self.assertTrue(server.until(lambda: server.ask('/health')[0] == 200))
        self.assertTrue(server.until(lambda: 'steps are made again' in server.log()))
        for reply in replies:
            reply.close()
        server.ok('/v1/chat/completions', chat())
        self.assertEqual(server.end(), 0)

    def test_a_signal_ends_it_and_tells_the_streams(self):
        for timeout, number in ('1e6', signal.SIGTERM), ('3', signal.SIGTERM), ('3', signal.SIGINT):
            server = self.start(*self.FLAGS[2:], '--engine-stall-timeout', timeout, '--engine-stall-grace', '1e6', '--shutdown-timeout',
                                '0' if timeout == '1e6' else '600', longest=LONGEST)
            if timeout == '3':
                replies = self.stall(server)
            else:  # nobody knows yet that the step will not end
                replies = []
                connection = server.connect()
                connection.request('POST', '/v1/chat/completions', json.dumps(chat(messages=[{'role': 'user', 'content': '[[endless]]'}], **LONG, stream=True)))
                replies.append(connection.getresponse())
                self.gate.close('step')
            server.process.send_signal(number)
            for reply in replies:
                if isinstance(reply, http.client.HTTPConnection):
                    reply = reply.getresponse()
                self.assertIn(b'"error"', reply.read())
            self.assertEqual(server.process.wait(timeout=120), 0, server.log())
            self.gate.open('step')


class Sleeps(unittest.TestCase):
    FLAGS = ('--enable-admin-endpoints', '--speculative-config', '{"method": "mtp", "num_speculative_tokens": 2}', '--max-num-seqs', '4')

    def setUp(self):
        self.server = Server(*self.FLAGS, longest=LONGEST)
        self.addCleanup(self.server.end)

    def resident(self):
        return int(pathlib.Path(f'/proc/{self.server.process.pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE')

    def do(self, path, status=200):
        found, _, text = self.server.ask(path, b'', 'POST')
        self.assertEqual(found, status, (path, text))
        return json.loads(text)

    def is_sleeping(self):
        return self.server.ok('/is_sleeping')['is_sleeping']

    def answers(self):
        """With a long prompt, so that pages, slots, checkpoints and the workspace were written."""
        texts = []
        for i in range(3):
            body = completion(prompt=f'Word {i} ' + 'Once upon a time there was a lark. ' * 120, seed=i, temperature=i % 2, max_tokens=40, return_token_ids=True, ignore_eos=True)
            texts.append(self.server.ok('/v1/completions', body)['choices'][0]['token_ids'])
        return texts

    def refused(self):
        for path, body in (('/v1/completions', completion()), ('/v1/chat/completions', chat(stream=True)), ('/v1/embeddings', {'model': MODEL, 'input': 'x'}),
                           ('/v1/responses', {'model': MODEL, 'input': 'x'})):
            status, headers, text = self.server.ask(path, body)
            self.assertEqual((status, json.loads(text)['error']['code'], headers['Retry-After']), (503, 'model_asleep', '1'), (path, text))
        self.server.ok('/tokenize', {'model': MODEL, 'prompt': 'x'})
        self.server.ok('/v1/models')
        self.assertEqual(self.server.ask('/health')[0], 200)  # whoever watches it must not start it again

    def test_memory_goes_back_and_the_answers_stay(self):
        weights = sum(file.stat().st_size for file in (ROOT / 'demo' / 'demo-qwen3_5').glob('*.safetensors'))
        answers = self.answers()
        self.assertFalse(self.is_sleeping())
        for level in 1, 2:
            self.assertGreater(self.server.metric('calandra:checkpoints'), 0)
            caches = self.server.metric('calandra:checkpoint_bytes')
            awake = self.resident()
            self.do('/sleep')
            self.assertTrue(self.is_sleeping())
            asleep = self.resident()
            self.do(f'/sleep?level={level}')  # deeper, or once more, which changes nothing
            deeper = self.resident()
            print(f'{awake >> 20} MiB awake, {asleep >> 20} MiB asleep, {deeper >> 20} MiB at level {level}; weights {weights >> 20} MiB', flush=True)
            self.assertLess(asleep, awake - caches / 2)
            if level == 2:
                self.assertLess(deeper, asleep - weights // 2)
            self.refused()
            self.assertEqual(self.server.metric('calandra:checkpoints'), 0)
            self.do('/wake_up')
            self.assertFalse(self.is_sleeping())
            self.assertEqual(self.answers(), answers, level)

    def test_it_wakes_up_in_parts(self):
        answers = self.answers()
        self.do('/sleep?level=2')
        self.do('/wake_up?tags=weights')
        self.assertTrue(self.is_sleeping())
        self.refused()
        self.do('/wake_up?tags=kv_cache')
        self.assertFalse(self.is_sleeping())
        self.assertEqual(self.answers(), answers)
        self.do('/sleep')
        self.do('/wake_up?tags=weights&tags=kv_cache')
        self.assertEqual(self.answers(), answers)

    def long_stream(self, **body):
        connection = self.server.connect()
        connection.request('POST', '/v1/completions', json.dumps(completion(**{**LONG, 'stream': True, **body})))
        reply = connection.getresponse()
        return reply, reply.read(30)

    def test_requests_that_run_end_or_are_waited_for(self):
        reply, first = self.long_stream()
        self.do('/sleep')
        self.assertIn(b'"error"', first + reply.read())
        self.do('/wake_up')
        reply, first = self.long_stream(max_tokens=300)
        self.do('/sleep?level=2&mode=wait')
        told = first + reply.read()
        self.assertTrue(told.endswith(b'data: [DONE]\n\n'))
        self.assertNotIn(b'"error"', told)
        self.do('/wake_up')
        self.answers()

    def test_wrong_ones_are_refused(self):
        for path in '/sleep?level=0', '/sleep?level=x', '/sleep?mode=keep', '/wake_up?tags=weigths':
            self.assertEqual(self.do(path, 400)['error']['code'], 'invalid_value')
        for path, method in ('/sleep', 'GET'), ('/is_sleeping', 'POST'), ('/reset_prefix_cache', 'GET'):
            self.assertEqual(self.server.ask(path, None if method == 'GET' else b'', method)[0], 405)
        self.do('/wake_up')  # it is awake
        self.assertFalse(self.is_sleeping())

    def test_caches_are_dropped(self):
        self.answers()
        hits = self.server.metric('vllm:prefix_cache_hits_total')
        self.answers()
        self.assertGreater(self.server.metric('vllm:prefix_cache_hits_total'), hits)
        for path in '/reset_prefix_cache', '/reset_mm_cache', '/reset_encoder_cache':
            self.do(path)
        self.assertEqual(self.server.metric('calandra:checkpoints'), 0)
        hits = self.server.metric('vllm:prefix_cache_hits_total')
        reply, first = self.long_stream()
        self.do('/reset_prefix_cache')  # what runs goes on
        self.assertNotIn(b'"error"', reply.read(2000))
        reply.close()
        self.assertEqual(self.server.metric('vllm:prefix_cache_hits_total'), hits)

    def test_weights_that_cannot_be_read_again(self):
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / 'model'
            subprocess.run(['cp', '-rL', str(ROOT / 'demo' / 'demo-qwen3_5'), str(model)], check=True)
            server = Server(str(model), '--enable-admin-endpoints', '--served-model-name', MODEL)
            try:
                before = server.ok('/v1/completions', completion(return_token_ids=True))['choices'][0]['token_ids']
                self.assertEqual(server.ask('/sleep?level=2', b'', 'POST')[0], 200)
                file = next(model.glob('*.safetensors'))
                times = file.stat()
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
                status, _, text = server.ask('/wake_up', b'', 'POST')
                self.assertEqual(status, 500, text)
                self.assertTrue(server.ok('/is_sleeping')['is_sleeping'])
                self.assertIn(str(file), server.log())
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
                self.assertEqual(server.ask('/wake_up', b'', 'POST')[0], 200)
                self.assertEqual(server.ok('/v1/completions', completion(return_token_ids=True))['choices'][0]['token_ids'], before)
            finally:
                self.assertEqual(server.end(), 0)

    def test_a_signal_ends_it_asleep(self):
        self.do('/sleep?level=2')
        self.assertEqual(self.server.end(), 0)


class Admins(unittest.TestCase):
    PATHS = (('/sleep', b''), ('/wake_up', b''), ('/is_sleeping', None), ('/reset_prefix_cache', b''), ('/reset_mm_cache', b''))

    def statuses(self, server, **headers):
        return {server.ask(path, body, 'GET' if body is None else 'POST', headers)[0] for path, body in self.PATHS}

    def test_they_are_there_when_asked_for_and_need_the_key(self):
        server = Server()
        self.assertEqual(self.statuses(server), {404})
        server.end()
        server = Server('--enable-admin-endpoints', '--api-key', 'secret')
        self.assertEqual(self.statuses(server), {401})
        self.assertEqual(self.statuses(server, Authorization='Bearer secret'), {200})
        server.end()
        for value, status in ('1', 200), ('0', 404):
            serve_harness.ENVIRONMENT['VLLM_SERVER_DEV_MODE'] = value
            server = Server()
            del serve_harness.ENVIRONMENT['VLLM_SERVER_DEV_MODE']
            self.assertEqual(self.statuses(server), {status})
            server.end()


if __name__ == '__main__':
    serve_harness.PROGRAM, SCRIPTED = sys.argv.pop(1), sys.argv.pop(1)
    STALLS = int(os.environ.get('CALANDRA_STALLS', STALLS))
    sys.exit(gtest_report.main())

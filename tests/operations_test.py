#!/usr/bin/env python3
"""What those who run a server meet: the config file, traces, the board for Grafana. Usage: operations_test.py PROGRAM"""
import http.server
import json
import pathlib
import re
import socket
import sys
import tempfile
import threading
import time
import unittest

import gtest_report
import serve_harness
from serve_harness import ROOT, Server, completion

TRACE, PARENT = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'


class Collector:
    """Takes spans as an OpenTelemetry collector does; `status` is what it answers."""

    def __init__(self):
        self.spans, self.faults, self.status = [], [], 200
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                if self.path != '/v1/traces' or self.headers['Content-Type'] != 'application/json':
                    collector.faults.append((self.path, self.headers['Content-Type']))
                if collector.status == 200:
                    for resource in body['resourceSpans']:
                        for scope in resource['scopeSpans']:
                            collector.spans += [(resource['resource'], span) for span in scope['spans']]
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self):
        return f'http://127.0.0.1:{self.server.server_port}/v1/traces'

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def attributes(span):
    kinds = {'stringValue': str, 'intValue': int, 'doubleValue': float}
    return {a['key']: kinds[kind](value) for a in span['attributes'] for kind, value in a['value'].items()}


class Traces(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.collector = Collector()
        cls.server = Server('--otlp-traces-endpoint', cls.collector.url())

    @classmethod
    def tearDownClass(cls):
        cls.server.end()
        cls.collector.close()

    def span_of(self, request_id):
        def find():
            return [(r, s) for r, s in list(self.collector.spans) if attributes(s)['gen_ai.request.id'] == request_id]
        self.assertTrue(self.server.until(find), request_id)
        found = find()
        self.assertEqual(len(found), 1)
        return found[0]

    def ask(self, request_id, body, **headers):
        return self.server.ask('/v1/completions', body, headers={'x-request-id': request_id, **headers})

    def test_a_request_is_a_span(self):
        for stream in (False, True):
            status, _, _ = self.ask(f'span-{stream}', completion(max_tokens=7, ignore_eos=True, stream=stream, n=2),
                                    traceparent=f'00-{TRACE}-{PARENT}-01')
            self.assertEqual(status, 200)
            resource, span = self.span_of(f'span-{stream}')
            self.assertEqual(resource['attributes'], [{'key': 'service.name', 'value': {'stringValue': 'calandra'}}])
            self.assertEqual((span['traceId'], span['parentSpanId'], span['name'], span['kind']), (TRACE, PARENT, 'POST /v1/completions', 2))
            self.assertRegex(span['spanId'], '^[0-9a-f]{16}$')
            self.assertGreater(int(span['endTimeUnixNano']), int(span['startTimeUnixNano']))
            found = attributes(span)
            self.assertGreater(found.pop('gen_ai.latency.e2e'), 0)
            self.assertGreater(found.pop('gen_ai.latency.time_to_first_token'), 0)
            self.assertGreater(found.pop('gen_ai.usage.prompt_tokens'), 0)
            self.assertEqual(found, {'http.request.method': 'POST', 'url.path': '/v1/completions', 'http.response.status_code': 200,
                                     'gen_ai.request.id': f'span-{stream}', 'gen_ai.response.model': serve_harness.MODEL,
                                     'gen_ai.usage.num_sequences': 2, 'gen_ai.usage.completion_tokens': 14})

    def test_all_apis_say_what_was_done(self):
        common = {'model': serve_harness.MODEL, 'ignore_eos': True, 'temperature': 0}
        chat = {'messages': [{'role': 'user', 'content': 'x'}]}
        for path, body in (('/v1/chat/completions', {**chat, 'max_tokens': 7}), ('/v1/messages', {**chat, 'max_tokens': 7}),
                           ('/v1/responses', {'input': 'x', 'max_output_tokens': 7})):
            for stream in (False, True):
                name = path.replace('/', '-') + str(stream)
                status, _, text = self.server.ask(path, {**common, **body, 'stream': stream}, headers={'x-request-id': name})
                self.assertEqual(status, 200, text)
                found = attributes(self.span_of(name)[1])
                self.assertEqual((found['gen_ai.usage.num_sequences'], found['gen_ai.usage.completion_tokens']), (1, 7))
                self.assertEqual(found['gen_ai.usage.prompt_tokens'], self.server.ok('/tokenize', {'model': serve_harness.MODEL, **chat})['count'])
                self.assertGreater(found['gen_ai.latency.time_to_first_token'], 0)

    def test_a_request_without_parent_begins_a_trace(self):
        for i, header in enumerate(({}, {'traceparent': f'00-{TRACE}-{PARENT}'}, {'traceparent': 'ff' * 30})):
            self.ask(f'first-{i}', {}, **header)
            span = self.span_of(f'first-{i}')[1]
            self.assertNotIn('parentSpanId', span)
            self.assertRegex(span['traceId'], '^[0-9a-f]{32}$')
            self.assertNotEqual(span['traceId'], TRACE)
            self.assertEqual(attributes(span)['http.response.status_code'], 400)

    def test_a_path_that_is_no_utf8(self):
        self.server.raw(b'GET /%FF%22%0a HTTP/1.1\r\nConnection: close\r\nX-Request-Id: bytes\r\n\r\n')
        self.assertEqual(attributes(self.span_of('bytes')[1])['url.path'], '/\ufffd"\n')

    def test_one_that_is_not_sampled_is_none(self):
        self.ask('silent', {}, traceparent=f'00-{TRACE}-{PARENT}-00')
        self.ask('behind', {})
        self.span_of('behind')
        self.assertNotIn('silent', [attributes(s)['gen_ai.request.id'] for _, s in self.collector.spans])

    def test_the_collector_found_no_fault(self):
        self.assertEqual(self.collector.faults, [])


class CollectorsThatFail(unittest.TestCase):
    def test_a_collector_that_is_away_costs_no_request(self):
        with socket.socket() as silent:  # takes connections and says nothing
            silent.bind(('127.0.0.1', 0))
            silent.listen(64)
            server = Server('--otlp-traces-endpoint', f'http://127.0.0.1:{silent.getsockname()[1]}')
            for _ in range(20):
                server.ok('/v1/models')
            server.process.terminate()
            server.process.wait(timeout=60)
            self.assertIn('traces: 0 spans sent, 20 dropped', server.log())
            server.end()

    def test_wrong_endpoints_are_refused(self):
        with self.assertRaisesRegex(RuntimeError, '--otlp-traces-endpoint: localhost:4318 is no address'):
            Server('--otlp-traces-endpoint', 'localhost:4318')

    def test_a_collector_behind_https(self):
        with tempfile.TemporaryDirectory() as folder:
            made = serve_harness.make_certificate(folder)
            if not made:
                self.skipTest('no openssl to make a certificate with')
            collector = Server('--ssl-certfile', made[0], '--ssl-keyfile', made[1])  # its answer is 404
            for known, told in (made[0], 'status 404'), ('/dev/null', 'certificate verify failed'):
                serve_harness.ENVIRONMENT['SSL_CERT_FILE'] = known
                server = Server('--otlp-traces-endpoint', f'https://localhost:{collector.port}')
                del serve_harness.ENVIRONMENT['SSL_CERT_FILE']
                server.ok('/v1/models')
                self.assertTrue(server.until(lambda: told in server.log()), server.log())
                server.end()
            collector.end()


class Config(unittest.TestCase):
    def test_a_file_holds_flags_and_the_command_line_wins(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / 'serve.yaml'
            file.write_text('# vLLM\'s form\nmodel: demo:qwen3_5\nserved-model-name:\n  - "one"\n  - two\nmax_num_seqs: 2\napi-key: secret\n'
                            'max-body-bytes: 4096\n')
            server = Server('--config', str(file), '--max-body-bytes', '8192')
            names = [m['id'] for m in json.loads(server.ask('/v1/models', headers={'Authorization': 'Bearer secret'})[2])['data']]
            self.assertEqual(names, ['one', 'two'])
            self.assertEqual(server.ask('/v1/models')[0], 401)
            key = {'Authorization': 'Bearer secret'}
            self.assertEqual(server.ask('/v1/completions', b'x' * 6000, headers=key)[0], 400)
            self.assertEqual(server.ask('/v1/completions', b'x' * 9000, headers=key)[0], 413)
            server.end()
            file.write_text('max-num-seq: 2\n')
            with self.assertRaisesRegex(RuntimeError, 'serve.yaml line 1.*did you mean --max-num-seqs'):
                Server('--config', str(file))


class Names(unittest.TestCase):
    def test_a_name_may_have_a_slash(self):
        server = Server('--served-model-name', 'org/name', '--served-model-name', 'other')
        for path in '/v1/models/org/name', '/v1/models/org%2Fname', '/v1/models/org%2fname':
            self.assertEqual(server.ok(path)['id'], 'org/name')
        self.assertEqual(server.ok('/v1/models/other')['id'], 'other')
        for path in '/v1/models/org', '/v1/models/org%252Fname', '/v1/models/org/name/':
            self.assertEqual(server.ask(path)[0], 404, path)
        self.assertEqual(server.ok('/v1/completions', completion(model='org/name', max_tokens=1))['model'], 'org/name')
        self.assertEqual(server.end(), 0)


class Board(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.end()

    def test_an_empty_body_in_chunks_may_come_in_parts(self):
        for parts in ((b'0\r\n', b'\r', b'\n'), (b'0', b'\r\n', b'a', b'bc', b'\r\n\r\n'), (b'0\r', b'\n\r', b'\n')):
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=60) as one:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for part in (b'POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n', *parts):
                    one.sendall(part)
                    time.sleep(0.1)  # else they come as one
                self.assertIn(b' 400 ', one.recv(4096), parts)
            self.server.ok('/health')

    def test_the_board_asks_for_metrics_that_are_there(self):
        self.server.ok('/v1/completions', completion(max_tokens=2))
        told = set(re.findall(r'^(\w+:\w+)\{', self.server.ask('/metrics')[2].decode(), re.M))
        board = json.loads((ROOT / 'packaging' / 'grafana.json').read_text())
        asked = [target['expr'] for panel in board['panels'] for target in panel['targets']]
        asked += [v['query'] for v in board['templating']['list'] if v['type'] == 'query']
        names = set(re.findall(r'\b(?:vllm|calandra):\w+', ' '.join(asked)))
        self.assertGreater(len(names), 20)
        self.assertEqual(names - told, set())


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    sys.exit(gtest_report.main())

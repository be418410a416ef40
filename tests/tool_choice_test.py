#!/usr/bin/env python3
"""`tool_choice` over HTTP: on the demo model, which of itself calls no tools, every answer is valid calls; the same with drafts and in a batch.

    tool_choice_test.py PROGRAM
"""
import concurrent.futures
import json
import sys
import unittest

import gtest_report
import serve_harness
from serve_harness import Server, chat

WEATHER = {'type': 'function', 'function': {'name': 'weather', 'parameters': {
    'type': 'object', 'required': ['city', 'days'],
    'properties': {'city': {'enum': ['Paris', 'Rome', 'Zürich']}, 'days': {'type': 'integer', 'minimum': 1, 'maximum': 14},
                   'exact': {'type': 'boolean'}}}}}
CODE = {'type': 'function', 'function': {'name': 'code', 'parameters': {
    'type': 'object', 'required': ['word'], 'properties': {'word': {'type': 'string', 'minLength': 1, 'maxLength': 6}}}}}
NOW = {'type': 'function', 'function': {'name': 'now'}}
TOOLS = [WEATHER, CODE, NOW]
NAMED = {'type': 'function', 'function': {'name': 'weather'}}


def problems(call):
    """What is wrong with a call, by the schemas above."""
    name, arguments = call['function']['name'], json.loads(call['function']['arguments'])
    if name == 'weather':
        fine = (arguments['city'] in ('Paris', 'Rome', 'Zürich') and type(arguments['days']) is int and 1 <= arguments['days'] <= 14
                and isinstance(arguments.get('exact', True), bool) and set(arguments) <= {'city', 'days', 'exact'})
    elif name == 'code':
        fine = isinstance(arguments['word'], str) and 1 <= len(arguments['word']) <= 6 and set(arguments) == {'word'}
    else:
        fine = name == 'now' and arguments == {}
    return '' if fine else json.dumps(call)


def asked(seed, **body):
    return chat(tools=TOOLS, temperature=1.0, seed=seed, max_tokens=300, return_token_ids=True, **body)


class ToolChoice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.plain = Server()
        cls.drafting = Server('--speculative-config', '{"method": "mtp", "num_speculative_tokens": 3, "adaptive": false}')
        cls.hermes = Server('--tool-call-parser', 'hermes')

    @classmethod
    def tearDownClass(cls):
        assert [server.end() for server in (cls.plain, cls.drafting, cls.hermes)] == [0, 0, 0]

    def check(self, choice, most=None):
        """Calls of an answer, or None where it reached its length."""
        if choice['finish_reason'] == 'length':
            return None
        message = choice['message']
        self.assertEqual((message['content'] or '').strip('\n'), '')
        self.assertTrue(message['tool_calls'])
        self.assertLessEqual(len(message['tool_calls']), most or 1000)
        self.assertEqual([problems(call) for call in message['tool_calls'] if problems(call)], [])
        return message['tool_calls']

    def answers(self, server, **body):
        bodies = [asked(seed, **body) for seed in range(6)]
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            return [reply['choices'][0] for reply in pool.map(lambda one: server.ok('/v1/chat/completions', one), bodies)]

    def test_required(self):
        for server in (self.plain, self.hermes):
            for parallel in (True, False):
                answers = self.answers(server, tool_choice='required', parallel_tool_calls=parallel)
                ended = [choice for choice in answers if self.check(choice, None if parallel else 1)]
                self.assertGreater(len(ended), 2)
                self.assertEqual({choice['finish_reason'] for choice in ended}, {'tool_calls'})

    def test_a_named_function(self):
        for choice in self.answers(self.plain, tool_choice=NAMED):
            calls = self.check(choice, 1)
            self.assertEqual(([call['function']['name'] for call in calls], choice['finish_reason']), (['weather'], 'stop'))

    def test_allowed_tools(self):
        allowed = {'type': 'allowed_tools', 'allowed_tools': {'mode': 'required', 'tools': [NAMED, {'type': 'function', 'function': {'name': 'now'}}]}}
        for choice in self.answers(self.plain, tool_choice=allowed):
            for call in self.check(choice) or []:
                self.assertIn(call['function']['name'], ('weather', 'now'))

    def test_drafts_change_nothing(self):
        for choice in ('required', NAMED):
            ids = [[one['token_ids'] for one in self.answers(server, tool_choice=choice)] for server in (self.plain, self.drafting)]
            self.assertEqual(ids[0], ids[1])
        self.assertGreater(self.drafting.metric('vllm:spec_decode_num_accepted_tokens_total'), 0)

    def test_behind_thoughts(self):
        thinking = {'chat_template_kwargs': {'enable_thinking': True}, 'thinking_token_budget': 8}
        answers = self.answers(self.plain, tool_choice='required', parallel_tool_calls=False, **thinking)
        ended = [choice for choice in answers if self.check(choice, 1)]
        self.assertGreater(len(ended), 2)
        self.assertTrue(any(choice['message'].get('reasoning') for choice in ended))

    def test_streams_are_the_answers(self):
        for seed in range(2):
            body = asked(seed, tool_choice='required')
            whole = self.plain.ok('/v1/chat/completions', body)['choices'][0]
            calls = {}
            for chunk in self.plain.stream('/v1/chat/completions', body):
                for part in chunk['choices'][0]['delta'].get('tool_calls', []):
                    call = calls.setdefault(part['index'], {'name': '', 'arguments': ''})
                    for name, text in part['function'].items():
                        call[name] += text
                reason = chunk['choices'][0]['finish_reason']
            self.assertEqual(list(calls.values()), [call['function'] for call in whole['message'].get('tool_calls', [])])
            self.assertEqual(reason, whole['finish_reason'])

    def test_length_wins(self):
        cut = self.plain.ok('/v1/chat/completions', {**asked(1, tool_choice='required'), 'max_tokens': 12})
        self.assertEqual(cut['choices'][0]['finish_reason'], 'length')

    def test_the_other_forms_of_the_api(self):
        message = self.plain.ok('/v1/messages', {
            'model': serve_harness.MODEL, 'max_tokens': 300, 'messages': [{'role': 'user', 'content': 'Hello'}], 'temperature': 0,
            'tools': [{'name': 'now', 'input_schema': {'type': 'object', 'properties': {}}}], 'tool_choice': {'type': 'any', 'disable_parallel_tool_use': True}})
        self.assertEqual([part['name'] for part in message['content'] if part['type'] == 'tool_use'], ['now'])
        self.assertEqual(message['stop_reason'], 'tool_use')

    def test_what_is_refused(self):
        schema = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'object'}}}
        bad_tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object', 'properties': {'a': {'not': {}}}}}}
        for param, body in (('tool_choice', {'tool_choice': 'sometimes'}), ('tool_choice', {'tool_choice': 5}),
                            ('tool_choice', {'tool_choice': 'required', 'tools': []}),
                            ('tool_choice', {'tool_choice': {'type': 'function', 'function': {'name': 'other'}}}),
                            ('tool_choice', {'tool_choice': 'required', 'response_format': schema}),
                            ('tools', {'tool_choice': 'required', 'tools': [bad_tool]})):
            status, _, text = self.plain.ask('/v1/chat/completions', {**asked(0), **body})
            self.assertEqual((status, json.loads(text)['error']['param']), (400, param), text)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    sys.exit(gtest_report.main())

// Semantics that the recorded snippets do not reach, marks of origin, and budgets.
#include "text/jinja/template.h"

#include <gtest/gtest.h>

namespace calandra::jinja {
namespace {

std::vector<Variable> variables_of(const json::object& context) {
  std::vector<Variable> variables;
  for (const auto& [name, value] : context) variables.push_back({std::string(name), value, true});
  return variables;
}

MarkedString render_marked(std::string_view source, const json::object& context = {}, const Budgets& budgets = {}) {
  return Template(source).render(variables_of(context), std::tm{}, budgets);
}

std::string render(std::string_view source, const json::object& context = {}) {
  return render_marked(source, context).text();
}

// The kind of the failure, and its line: "TypeError@2"; the output if there is none.
std::string failure_of(std::string_view source, const json::object& context = {}, const Budgets& budgets = {}) {
  try {
    return render_marked(source, context, budgets).text();
  } catch (const Failure& failure) {
    return failure.kind() + "@" + std::to_string(failure.line());
  }
}

// The output with what is input between < and >.
std::string marked(std::string_view source, const json::object& context) {
  std::string shown;
  for (const TextPiece& piece : render_marked(source, context).pieces())
    shown += piece.is_input ? "<" + piece.text + ">" : piece.text;
  return shown;
}

std::string repeated(std::string_view part, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += part;
  return text;
}

TEST(Scopes, NamesAreDecidedBeforeRendering) {
  EXPECT_EQ(render("{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% set x = 9 %}{{ m() }}", {{"x", 5}}), "9");
  EXPECT_EQ(render("{% for i in [1] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}", {{"x", 5}}), "515");
  EXPECT_EQ(render("{% if false %}{% set x = 1 %}{% endif %}{{ x }}", {{"x", 5}}), "5");
  EXPECT_EQ(render("{% with x = 2, y = x %}{{ y }}{% endwith %}", {{"x", 5}}), "5");
  EXPECT_EQ(render("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"), "21");
  EXPECT_EQ(render("{% block b %}{{ x }}{% set x = 2 %}{% endblock %}{{ x }}{{ self.b() }}", {{"x", 5}}), "555");
}

TEST(Loops, ElseRunsUnlessAPassEnds) {
  EXPECT_EQ(render("{% for i in [1, 2] %}{% break %}{% else %}E{% endfor %}"), "E");
  EXPECT_EQ(render("{% for i in [1, 2] %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% else %}E{% endfor %}"), "12");
}

TEST(Loops, ElseRunsIfEveryPassIsCutShort) {
  EXPECT_EQ(render("{% for i in [1, 2] %}{% continue %}{% else %}E{% endfor %}"), "E");
  EXPECT_EQ(render("{% for i in [1, 2] %}{% if i == 2 %}{% continue %}{% endif %}{% else %}E{% endfor %}"), "");
}

TEST(Loops, IteratorsAreReadOnce) {
  EXPECT_EQ(render("{% set g = [1, 2]|map('string') %}{{ g|list }}{{ g|list }}"), "['1', '2'][]");
  EXPECT_EQ(render("{% for i in [1, 2, 3]|select %}{{ loop.length }}{{ loop.last }} {% endfor %}"),
            "3False 3False 3True ");
}

TEST(Numbers, NegativeConstantsInPowersFollowJinja) {
  EXPECT_EQ(render("{{ -2 ** 2 }} {{ -2 ** x }} {{ (-2) ** x }} {{ -x ** 2 }}", {{"x", 2}}), "4 -4 -4 4");
}

TEST(Numbers, IntegersHaveAnySize) {
  EXPECT_EQ(render("{{ 9223372036854775807 + 1 }} {{ -9223372036854775808 - 1 }} {{ 2 ** 100 }}"),
            "9223372036854775808 -9223372036854775809 1267650600228229401496703205376");
  EXPECT_EQ(render("{{ (2 ** 70) // -3 }} {{ (2 ** 70) % -3 }} {{ 2 ** 70 / 2 ** 69 }}"),
            "-393530540239137101142 -2 2.0");
  EXPECT_EQ(render("{{ 9007199254740993 / 3 }} {{ 2 ** 53 + 1 == 9007199254740992.0 }}"), "3002399751580331.0 False");
}

TEST(Marks, StayWithTheirText) {
  const json::object context = {{"u", "<|im_end|>"}, {"words", {"a b", "c"}}, {"role", "user"}};
  EXPECT_EQ(marked("<|im_start|>{{ role }}\n{{ u }}<|im_end|>", context), "<|im_start|><user>\n<<|im_end|>><|im_end|>");
  EXPECT_EQ(marked("{{ 'A' + u + 'B' }}{{ '[' ~ u ~ ']' }}", context), "A<<|im_end|>>B[<<|im_end|>>]");
  EXPECT_EQ(marked("{{ ('xx' + u)[1:4] }}", context), "x<<|>");
  EXPECT_EQ(marked("{{ ('  ' + role + '  ')|trim }}!", context), "<user>!");
  EXPECT_EQ(marked("{{ ('a-' ~ role ~ '-b').split('-')|join('|') }}", context), "a|<user>|b");
  EXPECT_EQ(marked("{{ 'say X.'|replace('X', role) }}", context), "say <user>.");
  EXPECT_EQ(marked("{{ words|join(', ') }}", context), "<a b>, <c>");
  EXPECT_EQ(marked("{{ ('x' ~ role)|upper }} {{ '%s!' % role }}{{ 'in {}'.format(role) }}", context),
            "X<USER> <user>!in <user>");
  EXPECT_EQ(marked("{% set t %}a{{ role }}{% endset %}{% macro m(v) %}({{ v }}){% endmacro %}{{ m(t) }}", context),
            "(a<user>)");
}

TEST(Marks, WhatCannotBeFollowedIsInput) {
  const json::object context = {{"tools", {{{"name", "f<|im_end|>"}}}}};
  EXPECT_EQ(marked("{{ tools|tojson }} {{ tools }} {{ [1]|tojson }}", context),
            "<[{\"name\": \"f<|im_end|>\"}]> <[{'name': 'f<|im_end|>'}]> [1]");
}

TEST(Marks, VariablesOfTheTemplateAreNotInput) {
  const auto text = Template("{{ bos }}{{ x }}").render({{"bos", "<s>", false}, {"x", "<s>", true}}, std::tm{});
  const auto pieces = text.pieces();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_FALSE(pieces[0].is_input);
  EXPECT_TRUE(pieces[1].is_input);
}

TEST(Failures, NameTheLine) {
  EXPECT_EQ(failure_of("a\n{{ x }}\n{{ x + }}"), "TemplateSyntaxError@3");
  EXPECT_EQ(failure_of("a\n{% if true %}\n{{ 1 + 'a' }}{% endif %}"), "TypeError@3");
  EXPECT_EQ(failure_of("\n\n{{ raise_exception('no') }}"), "TemplateError@3");
  EXPECT_EQ(failure_of("{% include 'x' %}"), "TypeError@1");
  EXPECT_EQ(failure_of("{{ 'x'|urlize }}"), "UnsupportedError@1");
  EXPECT_EQ(failure_of("{{ ''.encode(nothing) }}"), "UndefinedError@1");
  EXPECT_EQ(failure_of("{{ ''.encode(5) }}"), "TypeError@1");
}

TEST(Budgets, StopEndlessWork) {
  const std::string endless = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}";
  EXPECT_EQ(failure_of(endless), "BudgetError@1");
  EXPECT_EQ(failure_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "RecursionError@1");
  EXPECT_EQ(failure_of("{{ range(10 ** 9) }}"), "OverflowError@1");
  EXPECT_EQ(
      failure_of("{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
      "BudgetError@1");
  EXPECT_EQ(failure_of("{{ 'a' * 10 ** 12 }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ [0] * 10 ** 12 }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ 'a'|center(10 ** 12) }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ '%999999999d' % 1 }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ '{:999999999}'.format(1) }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{{ 10 ** (10 ** 10) }}"), "BudgetError@1");
  EXPECT_EQ(failure_of("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}"), "BudgetError@1");
}

TEST(Budgets, CountWhatIsHidden) {
  // Text of outer macros that waits while inner ones run, undefined values, bound methods, comparisons of big values.
  EXPECT_EQ(failure_of("{% macro m(n) %}{{ 'x' * 10000000 }}{% if n %}{% set y = m(n - 1) %}{% endif %}{% endmacro "
                       "%}{{ m(50)|length }}"),
            "BudgetError@1");
  EXPECT_EQ(failure_of("{% set ns = namespace(v=[]) %}{% for i in range(50) %}{% set ns.v = [ns.v, "
                       "range(9999)|map(attribute='zz')|list] %}{% endfor %}"),
            "BudgetError@1");
  EXPECT_EQ(failure_of("{% set ns = namespace(v=[]) %}{% for i in range(50) %}{% set ns.v = [ns.v, (['a'] * "
                       "9999)|map(attribute='upper')|list] %}{% endfor %}"),
            "BudgetError@1");
  json::array big(100'000, json::value(1));
  EXPECT_EQ(failure_of("{% for i in range(1000) %}{{ a == b }}{% endfor %}", {{"a", big}, {"b", big}}),
            "BudgetError@1");
}

TEST(Budgets, CanBeSet) {
  Budgets small;
  small.output_bytes = 10;
  EXPECT_EQ(failure_of("0123456789", {}, small), "0123456789");
  EXPECT_EQ(failure_of("{{ '0123456789' }}x", {}, small), "BudgetError@1");
  small = Budgets();
  small.steps = 50;
  EXPECT_EQ(failure_of("{% for i in range(5) %}{{ i }}{% endfor %}", {}, small), "01234");
  EXPECT_EQ(failure_of("{% for i in range(50) %}{{ i }}{% endfor %}", {}, small), "BudgetError@1");
  small = Budgets();
  small.call_depth = 3;
  const std::string_view calls =
      "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(start) }}";
  EXPECT_EQ(failure_of(calls, {{"start", 2}}, small), "210");
  EXPECT_EQ(failure_of(calls, {{"start", 3}}, small), "RecursionError@1");
}

TEST(Budgets, DeepSourcesAreRefusedNotCrashedOn) {
  for (const size_t depth : {200u, 6000u, 20000u}) {
    EXPECT_EQ(failure_of("{{ " + repeated("(", depth) + "1" + repeated(")", depth) + " }}"), "TemplateSyntaxError@1");
    EXPECT_EQ(failure_of(repeated("{% if true %}", depth) + repeated("{% endif %}", depth)), "TemplateSyntaxError@1");
    EXPECT_EQ(failure_of("{{ " + repeated("not ", depth) + "1 }}"), "TemplateSyntaxError@1");
    EXPECT_EQ(failure_of("{{ " + repeated("[", depth) + repeated("]", depth) + " }}"), "TemplateSyntaxError@1");
    EXPECT_EQ(failure_of("{{ " + repeated("1 if 0 else ", depth) + "2 }}"), "TemplateSyntaxError@1");
  }
  EXPECT_EQ(failure_of("{{ 1" + repeated(" + 1", 300) + " }}"), "301");
  EXPECT_EQ(failure_of("{{ 1" + repeated(" + 1", 100'000) + " }}"), "TemplateSyntaxError@1");
  EXPECT_EQ(failure_of("{{ 'x'" + repeated("|upper", 100'000) + " }}"), "TemplateSyntaxError@1");
}

TEST(Budgets, DeepValuesAreRefused) {
  EXPECT_EQ(failure_of("{% set ns = namespace(v=[]) %}{% for i in range(5000) %}{% set ns.v = [ns.v] %}{% endfor %}"),
            "RecursionError@1");
  EXPECT_EQ(failure_of("{% set ns = namespace(v=[]) %}{% for i in range(5000) %}{% set ns.v = ns.v|map('string') %}{% "
                       "endfor %}{{ ns.v|list }}"),
            "RecursionError@1");
  EXPECT_EQ(failure_of("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}"), "RecursionError@1");
}

TEST(Budgets, CirclesAreFreed) {  // the leak checker of the sanitizer build is the judge
  EXPECT_EQ(
      render(
          "{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}{{ ns.me is defined }}{% endmacro %}{{ m() }}"),
      "True");
  EXPECT_EQ(render("{% for i in [1, 2] if i %}{{ loop.changed(loop) }}{% set l = loop %}{% endfor %}"), "TrueFalse");
}

}  // namespace
}  // namespace calandra::jinja

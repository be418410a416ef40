// Filters over sequences: order, ends, sums, groups.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"

#include <algorithm>
#include <numeric>

namespace calandra::jinja {
namespace {

Value no_item(Interpreter& in, std::string hint) {
  UndefinedBody body;
  body.hint = std::move(hint);
  return Value::undefined(&in.meter(), std::move(body));
}

Value length(Interpreter& in, const Value& value, Arguments a) {
  bind("length", {}, 0, std::move(a));
  return Value::integer(length_of(in, value));
}

Value list(Interpreter& in, const Value& value, Arguments a) {
  bind("list", {}, 0, std::move(a));
  return Value::list(&in.meter(), collect(in, value));
}

Value first(Interpreter& in, const Value& value, Arguments a) {
  bind("first", {}, 0, std::move(a));
  auto item = iterate(in, value)->next(in);
  return item ? *item : no_item(in, "No first item, sequence was empty.");
}

Value last(Interpreter& in, const Value& value, Arguments a) {
  bind("last", {}, 0, std::move(a));
  if (!has_length(value)) type_error("'" + type_name(value) + "' object is not reversible");
  const std::vector<Value> items = collect(in, value);
  return items.empty() ? no_item(in, "No last item, sequence was empty.") : items.back();
}

Value reverse(Interpreter& in, const Value& value, Arguments a) {
  bind("reverse", {}, 0, std::move(a));
  if (!value.is_string()) {
    if (!is_iterable(value)) fail("FilterArgumentError", "argument must be iterable");
    return reversed(in, value);
  }
  std::vector<Value> chars = characters(in, value);
  TextBuilder out(in.meter());
  for (auto c = chars.rbegin(); c != chars.rend(); ++c) out.append(c->as_string());
  return in.string(out.take(), value.is_markup());
}

Value join(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("join", {"d", "attribute"}, 0, std::move(a));
  const Value separator = bound[0].is_missing() ? in.string("") : bound[0];
  std::vector<Value> items = collect(in, value);
  bool is_markup = false;
  for (Value& item : items) {
    item = attribute_path(in, item, bound[1], Value());
    is_markup = is_markup || item.is_markup();
  }
  is_markup = in.autoescape() && (is_markup || separator.is_markup());
  const auto text = [&](const Value& part) { return is_markup ? escape(in, part).as_string() : to_text(in, part); };
  const MarkedString between = text(separator);
  TextBuilder out(in.meter());
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(between);
    out.append(text(items[i]));
  }
  return in.string(out.take(), is_markup);
}

Value sum(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("sum", {"attribute", "start"}, 0, std::move(a));
  Value total = bound[1].is_missing() ? Value::integer(0) : bound[1];
  if (total.is_string()) type_error("sum() can't sum strings [use ''.join(seq) instead]");
  const auto iterator = iterate(in, value);
  while (const auto item = iterator->next(in)) {
    in.meter().step();
    total = binary(in, BinaryOp::kAdd, total, attribute_path(in, *item, bound[0], Value()));
  }
  return total;
}

// --- order ---

// What `sort` compares: one key per comma-separated attribute.
std::vector<Value> sort_keys(Interpreter& in, const Value& item, const Value& attribute, bool case_sensitive) {
  std::vector<Value> paths;
  if (attribute.is_string()) {
    const std::string& text = attribute.text();
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      paths.push_back(in.string(text.substr(begin, end - begin)));
      begin = end + 1;
    }
  } else {
    paths.push_back(attribute);
  }
  std::vector<Value> keys;
  for (const Value& path : paths) {
    const Value key = attribute_path(in, item, path, Value());
    keys.push_back(case_sensitive ? key : without_case(in, key));
  }
  return keys;
}

std::vector<Value> sorted(Interpreter& in, const std::vector<Value>& items, const std::vector<Value>& keys,
                          bool reverse) {
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // Merge sort never leaves its bounds, whatever the comparison says (NaN), and is stable.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    in.meter().step();
    return reverse ? less(keys[b], keys[a]) : less(keys[a], keys[b]);
  });
  std::vector<Value> result;
  result.reserve(items.size());
  for (const size_t index : order) result.push_back(items[index]);
  return result;
}

Value sort(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("sort", {"reverse", "case_sensitive", "attribute"}, 0, std::move(a));
  const std::vector<Value> items = collect(in, value);
  std::vector<Value> keys;
  for (const Value& item : items) {
    keys.push_back(Value::list(&in.meter(), sort_keys(in, item, bound[2], truth_or(bound[1], false))));
  }
  return Value::list(&in.meter(), sorted(in, items, keys, integer_or(bound[0], 0, "reverse") != 0));
}

Value dict_sort(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("dictsort", {"case_sensitive", "by", "reverse"}, 0, std::move(a));
  require_defined(value);
  if (!value.is(Kind::kDict)) fail("AttributeError", "'" + type_name(value) + "' object has no attribute 'items'");
  const std::string by = bound[1].is_string() ? bound[1].text() : bound[1].is_missing() ? "key" : "";
  if (by != "key" && by != "value") fail("FilterArgumentError", "You can only sort by either \"key\" or \"value\"");
  std::vector<Value> items, keys;
  for (const auto& [key, item] : value.as_dict().entries) {
    items.push_back(Value::tuple(&in.meter(), {key, item}));
    const Value& sorts = by == "key" ? key : item;
    keys.push_back(truth_or(bound[0], false) ? sorts : without_case(in, sorts));
  }
  return Value::list(&in.meter(), sorted(in, items, keys, integer_or(bound[2], 0, "reverse") != 0));
}

Value extreme(Interpreter& in, const Value& value, Arguments a, bool largest) {
  const auto bound = bind(largest ? "max" : "min", {"case_sensitive", "attribute"}, 0, std::move(a));
  const auto key_of = [&](const Value& item) {
    const Value key = attribute_path(in, item, bound[1], Value());
    return truth_or(bound[0], false) ? key : without_case(in, key);
  };
  const auto iterator = iterate(in, value);
  auto best = iterator->next(in);
  if (!best) return no_item(in, "No aggregated item, sequence was empty.");
  Value best_key = key_of(*best);
  while (auto item = iterator->next(in)) {
    in.meter().step();
    Value key = key_of(*item);
    if (ordered(key, largest ? ">" : "<", best_key)) {
      best = std::move(item);
      best_key = std::move(key);
    }
  }
  return *best;
}
Value minimum(Interpreter& in, const Value& value, Arguments a) { return extreme(in, value, std::move(a), false); }
Value maximum(Interpreter& in, const Value& value, Arguments a) { return extreme(in, value, std::move(a), true); }

// --- parts ---

// An iterator whose items are all made when the first is asked for; until then nothing is an error.
Value made_when_read(Interpreter& in, std::function<std::vector<Value>(Interpreter&)> make) {
  const auto items = std::make_shared<std::vector<Value>>();
  return generator(in, [items, make, at = size_t{0}](Interpreter& reader) mutable -> std::optional<Value> {
    if (at == 0) *items = make(reader);
    return at < items->size() ? std::optional((*items)[at++]) : std::nullopt;
  });
}

Value unique(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("unique", {"case_sensitive", "attribute"}, 0, std::move(a));
  const boost::intrusive_ptr<DictBody> seen(new DictBody());
  const bool case_sensitive = truth_or(bound[0], false);
  return generator(in,
                   [seen, case_sensitive, value, source = boost::intrusive_ptr<IteratorBody>(),
                    attribute = bound[1]](Interpreter& interpreter) mutable -> std::optional<Value> {
                     if (!source) source = iterate(interpreter, value);

                     while (auto item = source->next(interpreter)) {
                       interpreter.meter().step();
                       Value key = attribute_path(interpreter, *item, attribute, Value());
                       if (!case_sensitive) key = without_case(interpreter, key);
                       if (seen->find(key) != nullptr) continue;
                       seen->set(key, Value::none());
                       interpreter.meter().check(seen->entries.size() * 128);
                       return item;
                     }
                     return std::nullopt;
                   });
}

Value group_by(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("groupby", {"attribute", "default", "case_sensitive"}, 1, std::move(a));
  const bool case_sensitive = truth_or(bound[2], false);
  const std::vector<Value> items = collect(in, value);
  const auto key_of = [&](const Value& item) { return attribute_path(in, item, bound[0], bound[1]); };
  const auto folded = [&](const Value& key) { return case_sensitive ? key : without_case(in, key); };
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(folded(key_of(item)));
  std::vector<Value> groups, members;
  const auto finish = [&] {
    if (members.empty()) return;
    const Value key = key_of(members[0]);
    auto* group = new ListBody();
    const Value result = Value::heap(Kind::kTuple, &in.meter(), group);
    group->items = {key, Value::list(&in.meter(), std::move(members))};
    group->depth = 1 + std::max(group->items[0].depth(), group->items[1].depth());
    group->is_group = true;
    groups.push_back(result);
    members.clear();
  };
  for (const Value& item : sorted(in, items, keys, false)) {
    if (!members.empty() && !equal(folded(key_of(members[0])), folded(key_of(item)))) finish();
    members.push_back(item);
  }
  finish();
  return Value::list(&in.meter(), std::move(groups));
}

std::vector<Value> make_batches(Interpreter& in, const Value& value, const std::vector<Value>& bound) {
  const std::vector<Value> items = collect(in, value);
  std::vector<Value> lines, line;
  for (const Value& item : items) {
    if (equal(Value::integer(static_cast<int64_t>(line.size())), bound[0]))
      lines.push_back(Value::list(&in.meter(), std::exchange(line, {})));
    line.push_back(item);
  }
  if (!line.empty()) {
    const bool fills = !bound[1].is_missing() && !bound[1].is_none();
    const int64_t count = fills ? to_index(bound[0], "linecount") : 0;
    if (count > static_cast<int64_t>(line.size())) {
      in.meter().check(static_cast<size_t>(std::min<int64_t>(count, int64_t{1} << 40)) * sizeof(Value));
      line.resize(static_cast<size_t>(count), bound[1]);
    }
    lines.push_back(Value::list(&in.meter(), std::move(line)));
  }
  return lines;
}

Value batch(Interpreter& in, const Value& value, Arguments a) {
  return made_when_read(in, [value, bound = bind("batch", {"linecount", "fill_with"}, 1, std::move(a))](
                                Interpreter& reader) { return make_batches(reader, value, bound); });
}

std::vector<Value> make_slices(Interpreter& in, const Value& value, const std::vector<Value>& bound) {
  const std::vector<Value> items = collect(in, value);
  const int64_t slices = to_index(bound[0], "slices");
  if (slices == 0) fail("ZeroDivisionError", "integer division or modulo by zero");
  in.meter().check(static_cast<size_t>(std::clamp<int64_t>(slices, 0, int64_t{1} << 40)) * sizeof(Value));
  in.meter().step(std::max<int64_t>(0, slices));
  const auto size = static_cast<int64_t>(items.size());
  const int64_t each = slices > 0 ? size / slices : 0, larger = slices > 0 ? size % slices : 0;
  std::vector<Value> parts;
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t end = begin + each + (i < larger ? 1 : 0);
    std::vector<Value> part(items.begin() + begin, items.begin() + end);
    if (i >= larger && !bound[1].is_missing() && !bound[1].is_none()) part.push_back(bound[1]);
    parts.push_back(Value::list(&in.meter(), std::move(part)));
    begin = end;
  }
  return parts;
}

Value slice(Interpreter& in, const Value& value, Arguments a) {
  return made_when_read(in, [value, bound = bind("slice", {"slices", "fill_with"}, 1, std::move(a))](
                                Interpreter& reader) { return make_slices(reader, value, bound); });
}

Value random_item(Interpreter& in, const Value& value, Arguments a) {
  bind("random", {}, 0, std::move(a));
  const int64_t size = length_of(in, value);
  if (size == 0) return no_item(in, "No random item, sequence was empty.");
  return in.item(value, Value::integer(static_cast<int64_t>(in.random() % static_cast<uint64_t>(size))));
}

}  // namespace

FilterGroup sequence_filters() {
  return {
      {"length", length},   {"count", length},       {"list", list},     {"first", first},      {"last", last},
      {"reverse", reverse}, {"join", join},          {"sum", sum},       {"sort", sort},        {"dictsort", dict_sort},
      {"min", minimum},     {"max", maximum},        {"unique", unique}, {"groupby", group_by}, {"batch", batch},
      {"slice", slice},     {"random", random_item},
  };
}

}  // namespace calandra::jinja

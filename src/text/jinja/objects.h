// The bodies behind values, and what objects of a template can do.
#pragma once

#include "text/jinja/value.h"

#include <functional>
#include <unordered_map>

namespace calandra::jinja {

class Interpreter;

struct StringBody : Heap {
  MarkedString text;
  bool is_markup = false;
};

struct BigBody : Heap {
  BigInt value;
};

struct ListBody : Heap {
  std::vector<Value> items;
  int depth = 1;
  bool is_group = false;  // an element of `groupby`: its two items have the names grouper and list
};

// Keeps the order of insertion. Keys follow Python: 1, 1.0 and True are one key.
struct DictBody : Heap {
  // Adds or replaces; throws TypeError for keys without a hash.
  void set(const Value& key, const Value& value);
  const Value* find(const Value& key) const;  // null if absent; throws TypeError as set() does
  const Value* find(std::string_view key) const;

  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

 private:
  static constexpr size_t kIndexFrom = 9;  // fewer entries are searched one by one
  std::unordered_multimap<size_t, size_t> index_;
};

struct RangeBody : Heap {
  int64_t start = 0, stop = 0, step = 1;
  int64_t size() const;
  int64_t at(int64_t index) const { return start + index * step; }
};

struct ViewBody : Heap {
  enum What { kKeys, kValues, kItems } what = kKeys;
  Value dict;
};

// Why a value is undefined; decides the message when it is used.
struct UndefinedBody : Heap {
  std::string hint;        // the whole message, if not empty
  std::string owner_type;  // "dict object"; empty: a variable
  Value name;
  bool is_unsafe = false;  // an attribute that the sandbox forbids
};

// A Python iterator: can be read once.
struct IteratorBody : Heap {
  virtual std::optional<Value> next(Interpreter& in) = 0;
  virtual const char* type_name() const { return "generator"; }
  virtual std::optional<int64_t> length_hint() const { return std::nullopt; }
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  Value take(std::string_view name);  // removes a named argument; missing if not given
};

struct ObjectBody : Heap {
  virtual std::string type_name() const = 0;
  virtual std::string repr(Interpreter& in) = 0;
  virtual std::optional<Value> attribute(Interpreter&, std::string_view) { return std::nullopt; }
  virtual bool is_callable() const { return false; }
  virtual Value call(Interpreter& in, Arguments arguments);
  virtual bool is_iterable() const { return false; }
  virtual std::optional<Value> next(Interpreter&) { return std::nullopt; }  // of those that are iterable
  virtual std::optional<int64_t> length(Interpreter&) { return std::nullopt; }
};

// Function of C++ under a name: globals and bound methods.
struct FunctionBody : ObjectBody {
  using Code = std::function<Value(Interpreter&, Arguments)>;
  FunctionBody(std::string shown_as, Code code) : shown(std::move(shown_as)), code(std::move(code)) {}
  std::string type_name() const override { return "function"; }
  std::string repr(Interpreter&) override { return shown; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& in, Arguments arguments) override { return code(in, std::move(arguments)); }

  std::string shown;
  Code code;
};

// Things that can refer to each other in a circle are emptied when the rendering ends.
struct Collectable {
  virtual ~Collectable() = default;
  virtual void clear() = 0;
};

struct NamespaceBody : ObjectBody, Collectable {
  std::string type_name() const override { return "Namespace"; }
  std::string repr(Interpreter& in) override;
  std::optional<Value> attribute(Interpreter&, std::string_view name) override;
  void set(Meter& meter, const Value& name, const Value& value);
  void clear() override { attributes = DictBody(); }

  DictBody attributes;
};

Value make_function(Meter* meter, std::string shown, FunctionBody::Code code);
Value make_dict(Meter* meter, boost::intrusive_ptr<DictBody> dict);  // charges and checks the depth

}  // namespace calandra::jinja

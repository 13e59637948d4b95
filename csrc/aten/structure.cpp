// What a network is made of, listed in one walk over its modules (ghn_fast/capturing/structure.py says
// what a key is and has the same walk in Python).
//
// Items are Python objects, compared as such, and numbers: lengths, sizes of tensors, and the
// addresses of built-in types. A reader could tell from what it has read where the next one comes
// from and what it means, so two networks with the same items and numbers are the same.
#include "structure.h"

#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace py = pybind11;

namespace ghn {
namespace {

// What an attribute of a module is to the key.
enum class Role { ignored, hook, listed };

// Modules of one class nearly always have the same attributes, in one order. Only the names count:
// a class that is gone, and another one at its address, do no harm.
struct Layout {
  py::tuple names;
  std::vector<Role> roles;
};

// Layouts that are kept; classes may be made without end.
constexpr size_t kMostLayouts = 4096;

// Buffers of at most so many elements are listed by their values.
constexpr int64_t kFewElements = 16;

bool is_plain(PyTypeObject* type) {
  return type == &PyLong_Type || type == &PyBool_Type || type == &PyFloat_Type ||
         type == &PyUnicode_Type || type == Py_TYPE(Py_None) || type == &PyBytes_Type ||
         type == &PyComplex_Type || type == Py_TYPE(Py_Ellipsis) || type == &PyRange_Type;
}

PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

bool same(PyObject* name, PyObject* other) {
  return name == other || (PyUnicode_Check(name) && PyUnicode_Compare(name, other) == 0);
}

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

py::object stolen(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Names and values of a mapping, in its order. They stay when the mapping is changed meanwhile.
struct Entries {
  std::vector<py::object> names, values;

  explicit Entries(PyObject* mapping) {
    if (PyDict_CheckExact(mapping)) {
      names.reserve(size_t(PyDict_GET_SIZE(mapping)));
      values.reserve(size_t(PyDict_GET_SIZE(mapping)));
      PyObject *name, *value;
      Py_ssize_t at = 0;
      while (PyDict_Next(mapping, &at, &name, &value)) {
        names.push_back(borrowed(name));
        values.push_back(borrowed(value));
      }
      return;
    }
    // An ordered dictionary has an order of its own.
    for (const py::handle item : stolen(PyMapping_Items(mapping))) {
      const py::tuple pair = py::reinterpret_borrow<py::tuple>(item);
      names.push_back(pair[0]);
      values.push_back(pair[1]);
    }
  }

  size_t size() const { return names.size(); }
};

class Walk {
 public:
  // hooks, ignored: names of attributes that must be empty, and of those that do not count. norm:
  // class of the modules that are collected. no_key: exception for what cannot be listed.
  Walk(py::object hooks, py::object ignored, py::type norm, py::object no_key)
      : hooks_(std::move(hooks)),
        ignored_(std::move(ignored)),
        norm_(std::move(norm)),
        no_key_(std::move(no_key)) {}

  // Numbers an object; one that was listed before is listed by its number.
  bool is_new(py::handle object) {
    const auto [entry, fresh] = seen_.try_emplace(object.ptr(), int64_t(seen_.size()));
    if (fresh) {
      // Kept alive, so that no address comes again.
      alive_.push_back(borrowed(object.ptr()));
      numbers_.push_back(-1);
    } else {
      numbers_.push_back(entry->second);
    }
    return fresh;
  }

  // A network, or, not registered, a module that an attribute holds. value: called with what is not
  // listed here; it appends to the same items. Not kept, for it keeps this object.
  void add_module(py::handle module, bool registered, py::object value) {
    if (!registered) hidden_ = true;
    std::swap(value_, value);
    try {
      walk(module.ptr());
    } catch (...) {
      std::swap(value_, value);
      throw;
    }
    std::swap(value_, value);
  }

  // The key; nothing is added after it.
  py::tuple finish() {
    items.append(py::bytes(reinterpret_cast<const char*>(numbers_.data()),
                           numbers_.size() * sizeof(int64_t)));
    return py::tuple(items);
  }

  py::list items, parameters, norms;

  // Whether a module was reached that is not registered with its parent.
  bool hidden() const { return hidden_; }

 private:
  void walk(PyObject* module) {
    if (Py_EnterRecursiveCall(" while listing the modules of a network")) {
      throw py::error_already_set();
    }
    try {
      list(module);
    } catch (...) {
      Py_LeaveRecursiveCall();
      throw;
    }
    Py_LeaveRecursiveCall();
  }

  void list(PyObject* module) {
    PyTypeObject* type = Py_TYPE(module);
    append(reinterpret_cast<PyObject*>(type));
    if (!is_new(module)) return;
    static PyObject* const forward = interned("forward");
    append(stolen(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), forward)).ptr());
    const bool is_norm = PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(norm_.ptr()));
    if (is_norm) norms.append(py::handle(module));
    py::object own[3];
    attributes(module, own, is_norm);
    tensors(own[0].ptr(), true, is_norm);
    tensors(own[1].ptr(), false, is_norm);
    if (PyDict_CheckExact(own[2].ptr()) && PyDict_GET_SIZE(own[2].ptr()) == 0) {
      numbers_.push_back(0);
      return;
    }
    const Entries children(own[2].ptr());
    numbers_.push_back(int64_t(children.size()));
    for (size_t i = 0; i < children.size(); ++i) {
      append(children.names[i].ptr());
      if (children.values[i].is_none()) {
        append(Py_None);
      } else {
        walk(children.values[i].ptr());
      }
    }
  }

  // Lists what a module has, except for `own`: parameters, buffers and modules. Whether a norm layer
  // tracks running statistics does not count.
  void attributes(PyObject* module, py::object* own, bool is_norm) {
    static PyObject* const tracking = interned("track_running_stats");
    static PyObject* const special[3] = {interned("_parameters"), interned("_buffers"),
                                         interned("_modules")};
    const py::object all = stolen(PyObject_GenericGetDict(module, nullptr));
    const std::shared_ptr<const Layout> layout = layout_of(Py_TYPE(module), all.ptr());
    append(layout->names.ptr());
    // What is listed is collected first: listing it may run code that changes the module.
    std::vector<py::object> listed;
    listed.reserve(layout->roles.size());
    PyObject *name, *value;
    Py_ssize_t at = 0;
    for (size_t i = 0; PyDict_Next(all.ptr(), &at, &name, &value); ++i) {
      const Role role = i < layout->roles.size() ? layout->roles[i] : Role::listed;
      if (role == Role::listed) {
        if (!(is_norm && same(name, tracking))) listed.push_back(borrowed(value));
      } else if (role == Role::hook) {
        if (truth(value)) throw_no_key();
      } else {
        for (int s = 0; s < 3; ++s) {
          if (name == special[s]) own[s] = borrowed(value);
        }
      }
    }
    for (int s = 0; s < 3; ++s) {
      // Under a name that is not interned, or nowhere.
      if (!own[s]) own[s] = stolen(PyObject_GetAttr(module, special[s]));
    }
    for (const py::object& object : listed) attribute(object.ptr());
  }

  void tensors(PyObject* mapping, bool are_parameters, bool is_norm) {
    static PyObject* const statistics[3] = {
        interned("running_mean"), interned("running_var"), interned("num_batches_tracked")};
    if (PyDict_CheckExact(mapping) && PyDict_GET_SIZE(mapping) == 0) {
      numbers_.push_back(0);
      return;
    }
    const Entries named(mapping);
    numbers_.push_back(int64_t(named.size()));
    for (size_t i = 0; i < named.size(); ++i) {
      const py::object& tensor = named.values[i];
      PyObject* const name = named.names[i].ptr();
      append(name);
      if (is_norm && (same(name, statistics[0]) || same(name, statistics[1]) ||
                      same(name, statistics[2]))) {
        continue;
      }
      append(reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr())));
      if (tensor.is_none() || !is_new(tensor)) continue;
      list_tensor(tensor.ptr());
      if (are_parameters) {
        parameters.append(tensor);
        list_memory(tensor.ptr());
      } else {
        list_values(tensor.ptr());
      }
    }
  }

  // An attribute's value. Nearly all are plain, or tuples or lists of plain values.
  void attribute(PyObject* value) {
    PyTypeObject* type = Py_TYPE(value);
    if (is_plain(type)) {
      numbers_.push_back(reinterpret_cast<int64_t>(type));
      append(value);
      return;
    }
    if (type == &PyTuple_Type || type == &PyList_Type) {
      const py::object copy = stolen(PySequence_Tuple(value));  // a tuple itself
      if (add_plain(type, copy.ptr())) return;
    }
    if (type == &PySet_Type && PySet_GET_SIZE(value) == 0) {
      numbers_.push_back(reinterpret_cast<int64_t>(type));
      return;
    }
    numbers_.push_back(0);
    value_(py::handle(value));
  }

  // Lists a tuple, or a list as a tuple, of plain values; says whether it is one.
  bool add_plain(PyTypeObject* type, PyObject* values) {
    const Py_ssize_t size = PyTuple_GET_SIZE(values);
    for (Py_ssize_t i = 0; i < size; ++i) {
      if (!is_plain(Py_TYPE(PyTuple_GET_ITEM(values, i)))) return false;
    }
    numbers_.push_back(reinterpret_cast<int64_t>(type));
    numbers_.push_back(int64_t(size));
    for (Py_ssize_t i = 0; i < size; ++i) {
      numbers_.push_back(reinterpret_cast<int64_t>(Py_TYPE(PyTuple_GET_ITEM(values, i))));
    }
    append(values);
    return true;
  }

  void list_tensor(PyObject* object) {
    if (!THPVariable_CheckExact(object)) {
      // A class of its own may say another shape.
      numbers_.push_back(-1);
      append(stolen(PyObject_GetAttrString(object, "shape")).ptr());
      append(stolen(PyObject_GetAttrString(object, "dtype")).ptr());
      return;
    }
    const at::Tensor& tensor = THPVariable_Unpack(object);
    numbers_.push_back(tensor.dim());
    for (const int64_t size : tensor.sizes()) numbers_.push_back(size);
    numbers_.push_back(int64_t(tensor.scalar_type()));
  }

  // Where a parameter lies: it may share its memory with others.
  void list_memory(PyObject* object) {
    const at::Tensor& tensor = THPVariable_Unpack(object);
    numbers_.push_back(int64_t(tensor.layout()));
    if (tensor.layout() != at::kStrided || !tensor.has_storage()) return;
    const void* const storage = tensor.storage().unsafeGetStorageImpl();
    numbers_.push_back(storages_.try_emplace(storage, int64_t(storages_.size())).first->second);
    numbers_.push_back(tensor.storage_offset());
    bool expanded = false;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      expanded = expanded || (tensor.size(d) > 1 && tensor.stride(d) == 0);
    }
    numbers_.push_back(expanded);
  }

  // The values of a small buffer, which a forward pass may look at.
  void list_values(PyObject* object) {
    if (!THPVariable_CheckExact(object)) return;
    const at::Tensor& tensor = THPVariable_Unpack(object);
    if (tensor.layout() != at::kStrided || !tensor.device().is_cpu() || tensor.is_quantized() ||
        tensor.numel() > kFewElements || tensor.numel() == 0) {
      return;
    }
    const at::Tensor plain = tensor.detach().contiguous();
    append(py::bytes(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()).ptr());
  }

  std::shared_ptr<const Layout> layout_of(PyTypeObject* type, PyObject* attributes) {
    // Never freed: at exit the interpreter is gone before the libraries are.
    static auto& layouts = *new std::unordered_map<PyTypeObject*, std::shared_ptr<const Layout>>();
    PyObject *name, *value;
    Py_ssize_t at = 0;
    const auto known = layouts.find(type);
    if (known != layouts.end() &&
        known->second->roles.size() == size_t(PyDict_GET_SIZE(attributes))) {
      PyObject* const names = known->second->names.ptr();
      bool same = true;
      for (Py_ssize_t i = 0; same && PyDict_Next(attributes, &at, &name, &value); ++i) {
        same = PyTuple_GET_ITEM(names, i) == name;
      }
      if (same) return known->second;
    }
    auto layout = std::make_shared<Layout>();
    py::list names;
    for (at = 0; PyDict_Next(attributes, &at, &name, &value);) names.append(py::handle(name));
    layout->names = py::tuple(names);
    for (const py::handle each : layout->names) {
      layout->roles.push_back(contains(ignored_, each)  ? Role::ignored
                              : contains(hooks_, each) ? Role::hook
                                                       : Role::listed);
    }
    if (layouts.size() >= kMostLayouts) layouts.clear();
    layouts[type] = layout;
    return layout;
  }

  static bool contains(const py::object& set, py::handle item) {
    const int found = PySequence_Contains(set.ptr(), item.ptr());
    if (found < 0) throw py::error_already_set();
    return found == 1;
  }

  // Whether hooks are set; asking another object than a dictionary might run code.
  static bool truth(PyObject* hooks) {
    if (PyDict_Check(hooks)) return PyDict_GET_SIZE(hooks) != 0;
    return hooks != Py_None && hooks != Py_False;
  }

  [[noreturn]] void throw_no_key() {
    PyErr_SetNone(no_key_.ptr());
    throw py::error_already_set();
  }

  void append(PyObject* object) {
    if (PyList_Append(items.ptr(), object) < 0) throw py::error_already_set();
  }

  py::object value_, hooks_, ignored_, norm_, no_key_;
  std::unordered_map<PyObject*, int64_t> seen_;
  std::unordered_map<const void*, int64_t> storages_;
  std::vector<py::object> alive_;
  std::vector<int64_t> numbers_;
  bool hidden_ = false;
};

}  // namespace

void bind_structure(py::module_& m) {
  py::class_<Walk>(m, "Walk")
      .def(py::init<py::object, py::object, py::type, py::object>())
      .def("is_new", &Walk::is_new)
      .def("add_module", &Walk::add_module)
      .def("finish", &Walk::finish)
      .def_property_readonly("hidden", &Walk::hidden)
      .def_readonly("items", &Walk::items)
      .def_readonly("parameters", &Walk::parameters)
      .def_readonly("norms", &Walk::norms);
}

}  // namespace ghn

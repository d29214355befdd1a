#include "note.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>

#include "error.h"

namespace fs {
namespace {

class Reader {
 public:
  Reader(const char* text, size_t size) : at_(text), begin_(text), end_(text + size) {}

  void document() {
    space();
    need(peek() == '{', "an object is needed");
    value(0);
    space();
    need(at_ == end_, "text follows the object");
  }

 private:
  int peek() const { return at_ < end_ ? static_cast<unsigned char>(*at_) : -1; }
  int take() { return at_ < end_ ? static_cast<unsigned char>(*at_++) : -1; }

  void need(bool ok, const char* what) const {
    if (!ok)
      throw Error(FS_E_FORMAT, "plan note: byte " + std::to_string(at_ - begin_) + ": " + what +
                                   "; strict UTF-8 JSON is accepted");
  }

  void space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  void word(const char* text) {
    for (; *text; ++text) need(take() == *text, "not a JSON value");
  }

  void value(int depth) {
    switch (peek()) {
      case '{': return object(depth + 1);
      case '[': return array(depth + 1);
      case '"': string(); return;
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return number();
    }
  }

  // Steps over the comma or the closing bracket after a member; true when the bracket was met.
  bool closes(char bracket) {
    space();
    const int c = take();
    need(c == ',' || c == bracket, "a comma or a closing bracket is missing");
    space();
    return c == bracket;
  }

  bool opens_empty(char bracket, int depth) {
    need(depth <= kNoteDepth, "nested more than 32 deep");
    ++at_;
    space();
    if (peek() != bracket) return false;
    ++at_;
    return true;
  }

  void object(int depth) {
    if (opens_empty('}', depth)) return;
    std::set<std::string> keys;
    do {
      need(peek() == '"', "a key is missing");
      need(keys.insert(string()).second, "the key stands twice");
      space();
      need(take() == ':', "a colon is missing");
      space();
      value(depth);
    } while (!closes('}'));
  }

  void array(int depth) {
    if (opens_empty(']', depth)) return;
    do value(depth);
    while (!closes(']'));
  }

  void digits() {
    need(peek() >= '0' && peek() <= '9', "not a finite number");
    while (peek() >= '0' && peek() <= '9') ++at_;
  }

  void number() {
    const char* start = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0') ++at_;
    else digits();
    bool whole = true;
    if (peek() == '.') ++at_, digits(), whole = false;
    if (peek() == 'e' || peek() == 'E') {
      ++at_, whole = false;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    if (whole) return need(at_ - start < 4300, "a number of more than 4300 digits");
    double parsed = 0;
    const auto result = std::from_chars(start, at_, parsed);
    const bool tiny = result.ec == std::errc::result_out_of_range && underflows(start);
    need(tiny || (result.ec == std::errc() && std::isfinite(parsed)), "a number beyond float64");
  }

  // from_chars reports numbers below the smallest float64 as out of range too; those are zero, and
  // fine.
  bool underflows(const char* start) const {
    for (const char* c = start; c < at_; ++c) {
      if ((*c == 'e' || *c == 'E') && c[1] == '-') return true;
    }
    return *start == '0' || (*start == '-' && start[1] == '0');
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int k = 0; k < 4; ++k) {
      const int c = take();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      need(digit >= 0, "a bad \\u escape");
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    return code;
  }

  static void append(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 63));
    } else {
      out += code < 0x10000 ? static_cast<char>(0xE0 | code >> 12)
                            : static_cast<char>(0xF0 | code >> 18);
      if (code >= 0x10000) out += static_cast<char>(0x80 | (code >> 12 & 63));
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    }
  }

  void escape(std::string& out) {
    const int c = take();
    switch (c) {
      case '"':
      case '\\':
      case '/': out += static_cast<char>(c); return;
      case 'b': out += '\b'; return;
      case 'f': out += '\f'; return;
      case 'n': out += '\n'; return;
      case 'r': out += '\r'; return;
      case 't': out += '\t'; return;
      default: need(c == 'u', "an unknown escape");
    }
    uint32_t code = hex4();
    need(code < 0xDC00 || code > 0xDFFF, "a lone surrogate");
    if (code >= 0xD800 && code <= 0xDBFF) {
      need(take() == '\\' && take() == 'u', "a lone surrogate");
      const uint32_t low = hex4();
      need(low >= 0xDC00 && low <= 0xDFFF, "a lone surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append(out, code);
  }

  // A byte above 0x7F begins a sequence of 2 to 4 bytes, in the shortest form, no surrogates, at
  // most U+10FFFF.
  void sequence(std::string& out, int first) {
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    need(first >= 0xC2 && first <= 0xF4, "not UTF-8");
    uint32_t code = static_cast<uint32_t>(first) & (0x3Fu >> more);
    for (int k = 0; k < more; ++k) {
      const int c = take();
      need(c >= 0x80 && c <= 0xBF, "not UTF-8");
      code = code << 6 | (static_cast<uint32_t>(c) & 63);
    }
    const uint32_t least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
    need(code >= least && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF), "not UTF-8");
    append(out, code);
  }

  std::string string() {
    std::string out;
    ++at_;
    for (;;) {
      const int c = take();
      need(c >= 0x20, "a string is cut or holds a control character");
      if (c == '"') return out;
      if (c == '\\') escape(out);
      else if (c < 0x80) out += static_cast<char>(c);
      else sequence(out, c);
    }
  }

  const char* at_;
  const char* begin_;
  const char* end_;
};

}  // namespace

void check_note(const char* text, size_t size) { Reader(text, size).document(); }

}  // namespace fs

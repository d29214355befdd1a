#include "note.h"

#include <cctype>
#include <charconv>
#include <cstdint>
#include <locale>
#include <set>
#include <sstream>
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
    if (peek() == '-') ++at_;
    const char* start = at_;
    if (peek() == '0') ++at_;
    else digits();
    bool whole = true;
    if (peek() == '.') ++at_, digits(), whole = false;
    if (peek() == 'e' || peek() == 'E') {
      ++at_, whole = false;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    if (whole) return need(at_ - start <= 4300, "a number of more than 4300 digits");
    double parsed = 0;
    if (std::from_chars(start, at_, parsed).ec == std::errc()) return;
    // Out of range: below the smallest float64 the number is zero, and fine.
    std::istringstream stream(std::string(start, at_));
    stream.imbue(std::locale::classic());
    stream >> parsed;
    need(parsed < 1, "a number beyond float64");
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int k = 0; k < 4; ++k) {
      const int c = take();
      need(std::isxdigit(c), "a bad \\u escape");
      code = code * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return code;
  }

  // UTF-8: `more` bytes of six bits each behind the first.
  static void append(std::string& out, uint32_t code) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr uint32_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kFirst[more] | code >> 6 * more);
    for (int k = more - 1; k >= 0; --k) out += static_cast<char>(0x80 | (code >> 6 * k & 63));
  }

  void escape(std::string& out) {
    static const std::string letters = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    const int c = take();
    const size_t at = c < 0 ? std::string::npos : letters.find(static_cast<char>(c));
    if (at != std::string::npos) {
      out += meant[at];
      return;
    }
    need(c == 'u', "an unknown escape");
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

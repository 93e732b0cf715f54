// The first frame of a GIF, as Pillow finds and decodes it.
#include "formats.hpp"

namespace uniecs {
namespace {

constexpr std::size_t BLOCK = 65536;  // what Pillow gives its decoder at once
constexpr int MAX_BITS = 12;
constexpr int TABLE = 1 << MAX_BITS;

struct Frame {
    std::int64_t left = 0, top = 0, right = 0, bottom = 0;
    bool interlaced = false;
    std::optional<std::uint8_t> transparent;
    std::optional<Bytes> palette;  // none: the indices are greys
    int bits = 0;
    std::size_t start = 0;  // of the compressed indices
};

// The order in which the lines of an interlaced frame come.
class Lines {
  public:
    Lines(int height, bool interlaced) : height_(height), pass_(interlaced ? 1 : 0), step_(pass_ ? 8 : 1) {}

    int line() const { return line_; }
    // False after the last.
    bool next() {
        line_ += step_;
        while (line_ >= height_) {
            if (pass_ < 1 || pass_ > 3) return false;
            step_ = pass_ == 1 ? 8 : pass_ == 2 ? 4 : 2;
            line_ = pass_ == 1 ? 4 : pass_ == 2 ? 2 : 1;
            pass_ = pass_ == 3 ? 0 : pass_ + 1;
        }
        return true;
    }

  private:
    int height_, pass_, step_, line_ = 0;
};

// Codes of growing width from blocks that tell their length. A block is read only once all of it is there.
class Codes {
  public:
    explicit Codes(Bytes data) : data_(data), limit_(std::min(BLOCK, data.size())) {}

    int next(int width) {
        while (filled_ < width) {
            if (left_ > 0) {
                bits_ |= std::uint32_t{data_.data()[at_++]} << filled_;
                filled_ += 8;
                --left_;
            } else {
                while (at_ >= limit_ || limit_ - at_ < std::size_t{data_.data()[at_]} + 1) more();
                left_ = data_.data()[at_++];
            }
        }
        const auto code = static_cast<int>(bits_ & ((1u << width) - 1));
        bits_ >>= width;
        filled_ -= width;
        return code;
    }
    void more() {
        if (limit_ >= data_.size()) throw ImageError("it is truncated");
        limit_ = std::min(limit_ + BLOCK, data_.size());
    }

  private:
    Bytes data_;
    std::size_t at_ = 0, limit_;
    int left_ = 0, filled_ = 0;
    std::uint32_t bits_ = 0;
};

class Lzw {
  public:
    Lzw(Bytes data, int bits) : codes_(data), bits_(checked(bits)), clear_(1 << bits_) { reset(); }

    // The indices that the next code stands for, last one first.
    const std::vector<std::uint8_t>& next() {
        for (;;) {
            const int code = codes_.next(width_);
            if (code == clear_) {
                reset();
            } else if (code == clear_ + 1) {
                codes_.more();  // Pillow reads on after an end that comes too soon
            } else {
                expand(code);
                return indices_;
            }
        }
    }

  private:
    static int checked(int bits) {
        if (bits > MAX_BITS) throw ImageError("it has codes of " + std::to_string(bits) + " bits");
        return bits;
    }

    void reset() {
        next_ = clear_ + 2;
        width_ = bits_ + 1;
        fresh_ = true;
    }

    void expand(int code) {
        indices_.clear();
        if (fresh_) {
            if (code > clear_) throw ImageError("it is damaged");
            last_index_ = static_cast<std::uint8_t>(code);
            indices_.push_back(last_index_);
            last_code_ = code;
            fresh_ = false;
            return;
        }
        if (code > next_) throw ImageError("it is damaged");
        int at = code;
        if (code == next_) {
            indices_.push_back(last_index_);
            at = last_code_;
        }
        for (; at >= clear_; at = link_[at]) {
            if (at >= TABLE || indices_.size() >= TABLE) throw ImageError("it is damaged");
            indices_.push_back(index_[at]);
        }
        last_index_ = static_cast<std::uint8_t>(at);
        indices_.push_back(last_index_);
        if (next_ < TABLE) {
            index_[next_] = last_index_;
            link_[next_] = last_code_;
            if (next_ == (1 << width_) - 1 && width_ < MAX_BITS) ++width_;
            ++next_;
        }
        last_code_ = code;
    }

    Codes codes_;
    int bits_, clear_, next_ = 0, width_ = 0, last_code_ = 0;
    bool fresh_ = true;
    std::uint8_t last_index_ = 0;
    std::array<std::uint8_t, TABLE> index_{};
    std::array<int, TABLE> link_{};
    std::vector<std::uint8_t> indices_;
};

void decode_indices(Bytes file, const Frame& frame, Canvas& canvas) {
    if (frame.right <= frame.left || frame.bottom <= frame.top) throw ImageError("its frame is empty");
    const auto left = static_cast<int>(frame.left), top = static_cast<int>(frame.top);
    const auto width = static_cast<int>(frame.right - frame.left);
    Lines lines(static_cast<int>(frame.bottom - frame.top), frame.interlaced);
    Lzw codes(file.part(frame.start), frame.bits);
    std::uint8_t* row = canvas.row(top) + left;
    for (int x = 0;;) {
        const std::vector<std::uint8_t>& indices = codes.next();
        for (std::size_t i = indices.size(); i-- > 0;) {
            row[x] = indices[i];
            if (++x < width) continue;
            x = 0;
            if (!lines.next()) return;
            row = canvas.row(top + lines.line()) + left;
        }
    }
}

class Reader {
  public:
    explicit Reader(Bytes file) : file_(file), cursor_(file) {}

    Decoded decode() {
        const Bytes screen = cursor_.read(13);
        width_ = screen.le16(6);
        height_ = screen.le16(8);
        if (screen[10] & 128) frame_.palette = read_palette(screen[10]);
        screen.be16(11);
        find_frame();
        Canvas canvas(checked_size(width_, height_), 1, frame_.transparent.value_or(0));
        decode_indices(file_, frame_, canvas);
        return {shown(canvas, colours()), 1};
    }

  private:
    // A sub-block; empty at the end of a row of them.
    Bytes data() {
        const Bytes size = cursor_.read(1);
        return size.empty() || !size[0] ? Bytes() : cursor_.read(size[0]);
    }

    // Nothing for a palette that says that index i is grey i.
    std::optional<Bytes> read_palette(std::uint8_t flags) {
        const Bytes palette = cursor_.read(std::size_t{6} << (flags & 7));
        for (std::size_t i = 0; i < palette.size(); i += 3)
            if (palette[i] != i / 3 || palette[i + 1] != i / 3 || palette[i + 2] != i / 3) return palette;
        return std::nullopt;
    }

    void find_frame() {
        for (;;) {
            const Bytes kind = cursor_.read(1);
            if (kind.empty() || kind[0] == ';') throw ImageError("it has no picture");
            if (kind[0] == '!') read_extension();
            if (kind[0] == ',') return read_frame();
        }
    }

    void read_extension() {
        const std::uint8_t kind = cursor_.read(1)[0];
        Bytes block = data();
        if (kind == 249 && !block.empty()) {
            if (block[0] & 1) frame_.transparent = block[3];
            block.le16(1);
        }
        if (kind == 254) {
            while (!block.empty()) block = data();
            return;
        }
        if (kind == 255 && block.starts_with("NETSCAPE2.0")) data();
        while (!data().empty()) {
        }
    }

    void read_frame() {
        const Bytes head = cursor_.read(9);
        frame_.left = head.le16(0);
        frame_.top = head.le16(2);
        frame_.right = frame_.left + head.le16(4);
        frame_.bottom = frame_.top + head.le16(6);
        width_ = std::max(width_, frame_.right);
        height_ = std::max(height_, frame_.bottom);
        frame_.interlaced = head[8] & 64;
        if (head[8] & 128) frame_.palette = read_palette(head[8]);
        frame_.bits = cursor_.read(1)[0];
        frame_.start = cursor_.tell();
    }

    Colours colours() const {
        Colours made = frame_.palette ? black() : grey_ramp();
        if (frame_.palette)
            for (std::size_t i = 0; i < frame_.palette->size() / 3; ++i)
                std::copy_n(frame_.palette->data() + 3 * i, 3, made[i].begin());
        if (frame_.transparent) made[*frame_.transparent][3] = 0;
        return made;
    }

    Bytes file_;
    Cursor cursor_;
    std::int64_t width_ = 0, height_ = 0;
    Frame frame_;
};

}  // namespace

Decoded decode_gif(Bytes file) { return Reader(file).decode(); }

}  // namespace uniecs

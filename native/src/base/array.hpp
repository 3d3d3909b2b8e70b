// Arrays in host memory, in C order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lrt {

using Shape = std::vector<std::int64_t>;

inline std::size_t elements(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t side : shape) count *= static_cast<std::size_t>(side);
    return count;
}

template <typename T>
struct Array {
    Shape shape;
    std::vector<T> values;

    Array() = default;
    explicit Array(Shape sides) : shape(std::move(sides)), values(elements(shape)) {}
    Array(Shape sides, std::vector<T> content) : shape(std::move(sides)), values(std::move(content)) {}

    std::int64_t rows() const { return shape.front(); }
    // Elements of one row.
    std::size_t stride() const { return rows() == 0 ? 0 : values.size() / static_cast<std::size_t>(rows()); }
    T* row(std::size_t index) { return values.data() + index * stride(); }
    const T* row(std::size_t index) const { return values.data() + index * stride(); }
};

using Floats = Array<float>;
using Bytes = Array<std::uint8_t>;
using Ids = Array<std::int64_t>;

}  // namespace lrt
